"""How long is it until something happens?

    python -m benchmarks.start_up [help] [launch] [depth]

The help of every command; from ``python -m rljax.launch`` to the first step of the embedded task's
reinforcement learning, the first time and again with the programs that were kept (in the user's
cache folder, as by default; here in a temporary one); and what a step of 24 layers takes to trace
and to compile against one of 4.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax

from benchmarks.built import benched
from benchmarks.processes import answer, count_lines, running, until
from benchmarks.report import Row, report
from benchmarks.update import settings
from rljax.cli import COMMANDS

MODULE = "benchmarks.start_up"
CHILD = "--one"
LAUNCH = ["warm_start=null", "steps=2"]
DEPTHS = (4, 24)  # layers


def told() -> list[Row]:
    """The help of every command."""
    code = "import sys; from rljax.cli import main; sys.exit(main())"
    rows = []
    for command in ((), *((name,) for name in COMMANDS)):
        call = [sys.executable, "-c", code, *command, "--help"]
        seconds, processor = _timed(
            lambda call=call: subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        )
        name = " ".join(["rljax", *command, "--help"])
        rows.append({"what": name, "seconds": seconds, "CPU seconds": processor, "ratio": None})
    return rows


def launched() -> list[Row]:
    """To the first step of a run, without kept programs and with them."""
    rows = []
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        os.environ["XDG_CACHE_HOME"] = name
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
        for number, cache in enumerate(("nothing kept", "programs kept")):
            folder = Path(name) / f"run-{number}"
            start = time.perf_counter()
            with running(folder, LAUNCH) as processes:
                until(lambda f=folder: count_lines(f / "metrics.jsonl") > 0, processes)
                seconds = time.perf_counter() - start
            what = f"rljax.launch to its first step, {cache}"
            ratio = seconds / rows[0]["seconds"] if rows else None
            rows.append({"what": what, "seconds": seconds, "CPU seconds": None, "ratio": ratio})
        kept = len(list((Path(name) / "rljax" / "xla").iterdir()))
        assert kept, "no program was kept in the user's cache folder"
    return rows


def compiled(depths: tuple[int, ...] = DEPTHS) -> list[Row]:
    """Tracing, compiling, and drawing the state, by depth; the ratio to the first."""
    rows: list[Row] = []
    for depth in depths:
        found = answer(MODULE, CHILD, str(depth))
        for what, (seconds, processor) in found.items():
            first = next(
                (row for row in rows if row["what"] == f"{what}, {depths[0]} layers"), None
            )
            ratio = processor / first["CPU seconds"] if first else None
            row = {"what": f"{what}, {depth} layers", "seconds": seconds}
            rows.append({**row, "CPU seconds": processor, "ratio": ratio})
    return rows


def of_depth(layers: int) -> dict[str, tuple[float, float]]:
    """What a step with so many layers takes until it can run, in a process that has kept none."""
    command = settings("4x256", "grpo", rows=32)
    command.append(f"models.policy.layers={layers}")
    with benched(command) as bench:
        lowered = compiled = None

        def trace():
            nonlocal lowered
            lowered = bench.lowered()

        def compile_step():
            nonlocal compiled
            compiled = lowered.compile()

        return {
            "trace": _timed(trace),
            "compile": _timed(compile_step),
            "draw the state": _timed(lambda: jax.block_until_ready(bench.state())),
        }


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and those of the processor, of this process and of those that it waited for."""
    start, before = time.perf_counter(), _processor_seconds()
    call()
    return time.perf_counter() - start, _processor_seconds() - before


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


PARTS: dict[str, Callable[[], list[Row]]] = {"help": told, "launch": launched, "depth": compiled}


def main() -> None:
    if sys.argv[1:2] == [CHILD]:
        print(json.dumps(of_depth(int(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    parts = parser.parse_args().parts or PARTS
    report("start-up", [row for part in parts for row in PARTS[part]()])


if __name__ == "__main__":
    main()
