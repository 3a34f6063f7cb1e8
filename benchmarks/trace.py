"""What a profiler's trace says of where the time went."""

import collections
import re
from collections.abc import Callable
from pathlib import Path

import jax
from jax.profiler import ProfileData

from benchmarks.report import Row

AROUND = ("ThunkExecutor", "ThreadpoolListener", "end: ")  # a CPU's events that hold others


def trace(folder: Path, call: Callable[[], object], count: int = 15) -> list[Row]:
    """Traces a call into a folder, for Perfetto and TensorBoard too, and returns what its devices
    spent their time on: the operations that took the most, one row for all of a name."""
    jax.block_until_ready(call())
    with jax.profiler.trace(folder, create_perfetto_trace=True):
        jax.block_until_ready(call())
    (path,) = folder.rglob("*.xplane.pb")
    return largest(events(ProfileData.from_file(str(path))), count)


def events(data: ProfileData) -> list[tuple[str, float]]:
    """Name and seconds of every operation on the devices, or on the threads that stand in for
    them."""
    planes = [plane for plane in data.planes if plane.name.startswith("/device:")]
    found = []
    for plane in planes or data.planes:
        for line in plane.lines:
            if line.name.startswith(("Stream", "XLA Ops", "tf_XLA")):
                found += [(event.name, event.duration_ns / 1e9) for event in line.events]
    return [one for one in found if not one[0].startswith(AROUND)]


def largest(found: list[tuple[str, float]], count: int) -> list[Row]:
    """The operations with the most seconds, the numbers behind their names left out.

    >>> largest([("dot.1", 2.0), ("dot.2", 1.0), ("add", 1.0)], count=1)
    [{'operation': 'dot', 'times': 2, 'seconds': 3.0, 'share': 0.75}]
    """
    seconds, times = collections.Counter(), collections.Counter()
    for name, took in found:
        name = re.sub(r"[._]\d+$", "", name)
        seconds[name] += took
        times[name] += 1
    total = sum(seconds.values())
    return [
        {"operation": name, "times": times[name], "seconds": took, "share": took / total}
        for name, took in seconds.most_common(count)
    ]
