"""``python -m benchmarks.damage``: what becomes of a run whose files are damaged, or its disk full.

Every file of a checkpoint is damaged in every way, one at a time, and the state restored; then a
small run meets a file system that is full, in its middle, and one that it may only read.
"""

import argparse
import collections
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from benchmarks.processes import PATIENCE_SECONDS, count_lines, finish, head, log, row, running
from rljax.errors import UserError
from rljax.host.checkpoint import Checkpoints
from rljax.host.steps import read_meta, steps_in
from rljax.train import adamw, init_state
from rljax.trees import by_path
from rljax.types import TrainState

RUN = [
    "models.policy={fn: llama, layers: 1, width: 64, heads: 2, mlp_width: 64, rope_base: 100}",
    "warm_start=null",
    "steps=12",
    "data.train.count=64",
    "data.prompts_per_step=8",
    "sampling.max_tokens=6",
    "length={min_tokens: 2, max_tokens: 4}",
    "evaluation={prompts: 8, samples: 1}",
    "checkpoint={every_steps: 1, keep: 2}",
]


def flipped(share: float) -> Callable[[Path], None]:
    """One bit of the byte that lies at this share of a file."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        if data:
            data[min(int(len(data) * share), len(data) - 1)] ^= 0x10
        path.write_bytes(data)

    return flip


DAMAGE: dict[str, Callable[[Path], None]] = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped at 1/5": flipped(0.2),
    "flipped at 1/2": flipped(0.5),
    "flipped at the end": flipped(1.0),
}


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.damage", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        checkpoints(Path("whole/checkpoints"))
        disks()


def checkpoints(folder: Path) -> None:
    """Each file of the newest step, and of what is frozen, damaged in each way."""
    key = jax.random.key(0)
    optimizers = {"policy": adamw(4, 1, learning_rate=0.1)}

    def state(step: int) -> TrainState:
        return init_state(
            key=jax.random.fold_in(key, step),
            params={
                "policy": {"kernel": jax.random.normal(jax.random.fold_in(key, step), (64, 8))}
            },
            frozen={"reference": {"kernel": jax.random.normal(key, (64, 8))}},
            optimizers=optimizers,
        ).replace(step=jax.numpy.int32(step))

    states = {step: state(step) for step in (6, 7)}
    with Checkpoints(folder, every_steps=1, keep=2) as kept:
        for step, saved in states.items():
            kept.save(step, saved, {})
    files = [
        path.relative_to(folder)
        for part in ("7", "frozen")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    ]
    counts: dict[tuple[str, str], collections.Counter[str]] = {}
    for file in files:
        for kind, damage in DAMAGE.items():
            copy = Path("damaged/checkpoints")
            shutil.copytree(folder, copy)
            damage(copy / file)
            what = "what is frozen" if file.parts[0] == "frozen" else "the newest step"
            found = counts.setdefault((what, kind), collections.Counter())
            found[outcome(copy, states)] += 1
            shutil.rmtree(copy.parent)
    head("damage to one file of", "which is", "observed, in so many of its files")
    for (what, kind), found in counts.items():
        row(what, kind, ", ".join(f"{text} {n}" for text, n in sorted(found.items())))


def outcome(folder: Path, states: dict[int, TrainState]) -> str:
    """What restoring does: nothing but these may come of it."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), states[7]
    )
    with Checkpoints(folder, every_steps=1, keep=2) as kept:
        try:
            found = kept.restore(abstract)
        except UserError as error:
            return "refused by name" if "frozen is damaged" in str(error) else f"WRONG: {error}"
    for name, leaf in by_path(found.state.replace(key=())).items():
        if not np.array_equal(leaf, by_path(states[found.step])[name]):
            return f"WRONG: {name} restored as another"
    return "restored bit by bit" if found.step == 7 else "passed over by name, the one before taken"


def disks() -> None:
    """A run on a file system that fills up, and one that it may only read."""
    head("fault", "code", "said", "then")
    finish(Path("alone"), RUN)
    with mounted("size=16m") as disk:
        if disk is None:
            row("a full disk", "", "no file system may be mounted here", "")
            return
        run = disk / "run"
        filler = disk / "filler"
        with running(run, RUN) as (process,):
            while process.poll() is None and count_lines(run / "metrics.jsonl") < 3:
                pass
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1024))
            code = process.wait(PATIENCE_SECONDS)
        sound = steps_in(run / "checkpoints")
        row("the disk fills up", code, last_line(run), f"sound: steps {sound}")
        filler.unlink()
        finish(run, RUN)
        row("the same command, with room", 0, "", same(run))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with running(run, [*RUN, "evaluation.samples=2"]) as (process,):
            code = process.wait(PATIENCE_SECONDS)
        row("the folder may only be read", code, last_line(run), same(run))


@contextlib.contextmanager
def mounted(options: str) -> Iterator[Path | None]:
    """A file system in memory; None if this user may mount none."""
    disk = Path("disk").absolute()
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def last_line(run: Path) -> str:
    lines = log(run, 0, "err").read_text().splitlines()
    return lines[-1].replace(str(run.parent), "…") if lines else ""


def same(run: Path) -> str:
    """Whether a run's last state is that of the run which nothing happened to."""
    states = [read_meta(folder / "checkpoints", 12)["leaves"] for folder in (Path("alone"), run)]
    return "bitwise the undisturbed run" if states[0] == states[1] else "WRONG: another state"


if __name__ == "__main__":
    main()
