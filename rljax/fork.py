"""``--resume RUN`` and ``--fork RUN``: which state a run goes on from, if not its own newest."""

import json
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from rljax.ahead import REFERENCE
from rljax.errors import UserError
from rljax.folder import ACCEPTED, FORK, forked_from, holds_run, restore_config
from rljax.host.agree import agreed, is_writer
from rljax.host.checkpoint import no_step
from rljax.host.files import write_whole
from rljax.host.samples import SAMPLES, sampled_steps, table_path
from rljax.host.steps import FROZEN, steps_in

COPIED = ("metrics.jsonl", "evaluations.jsonl", REFERENCE)


class Origin(NamedTuple):
    """A run's folder, and the step of one of its checkpoints, by default the newest."""

    run: Path
    step: int | None


def fork_together(origin: Origin, folder: Path) -> bool:
    """``fork`` on process 0, while the others look whether it is done: a collective would not wait
    so long."""
    is_new = fork(origin, folder) if is_writer() else False
    while not (folder / FORK).exists():
        time.sleep(0.2)
    return agreed(lambda: is_new)


def find_run(name: str) -> Path:
    """The folder of a run that is to be gone on with. Raises ``UserError`` if none is there."""
    if _step_of(Path(name)) is not None:
        raise UserError(
            f"--resume {name}: a run goes on from its newest checkpoint; --fork begins a new one "
            "from an earlier"
        )
    if not holds_run(Path(name)):
        raise UserError(f"--resume {name}: no run is there; name its folder, such as runs/0001")
    agreed(lambda: restore_config(Path(name)))
    return Path(name)


def find_origin(name: str) -> Origin:
    """What is to be forked: the folder of a run, or one of the ``checkpoints`` in it.

    Raises ``UserError`` if no run is there.
    """
    path, step = Path(name), _step_of(Path(name))
    run = path if step is None else path.parent.parent
    if not holds_run(run):
        raise UserError(
            f"--fork {name}: no run is there; name its folder, or one of its checkpoints, such as "
            "runs/0001/checkpoints/40"
        )
    return Origin(run, step)


def _step_of(path: Path) -> int | None:
    is_checkpoint = path.name.isdigit() and path.parent.name == "checkpoints"
    return int(path.name) if is_checkpoint else None


def fork(origin: Origin, folder: Path) -> bool:
    """Copies a run up to a step into a new folder, from where it goes on, unless that was done;
    returns whether it has not been gone on with.

    Raises ``UserError`` if the folder holds another run, or there is nothing to go on from.
    """
    folder = folder.absolute()
    wanted = {"run": str(origin.run.resolve()), "step": origin.step}
    if told := forked_from(folder):
        if told == wanted:
            return not (folder / ACCEPTED).exists()
        at = "its newest step" if told["step"] is None else f"step {told['step']}"
        raise UserError(
            f"--fork: {folder} was forked from {told['run']} at {at}; name another run_dir"
        )
    if holds_run(folder):
        raise UserError(f"--fork: {folder} holds a run; name another run_dir")
    kept = steps_in(origin.run / "checkpoints")
    if not kept or (origin.step is not None and origin.step not in kept):
        raise UserError(f"--fork: {no_step(origin.run / 'checkpoints', origin.step, kept)}")
    newest = kept[-1] if origin.step is None else origin.step
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for part in ("checkpoints", "best"):
            for step in steps_in(origin.run / part):
                if step <= newest:
                    shutil.copytree(origin.run / part / str(step), partial / part / str(step))
        if (frozen := origin.run / "checkpoints" / FROZEN).exists():
            shutil.copytree(frozen, partial / "checkpoints" / FROZEN)
        for name in COPIED:
            if (origin.run / name).exists():
                shutil.copy2(origin.run / name, partial / name)
        for step in [step for step in sampled_steps(origin.run) if step <= newest]:
            (partial / SAMPLES).mkdir(exist_ok=True)
            shutil.copy2(table_path(origin.run, step), table_path(partial, step))
        write_whole(partial / FORK, json.dumps(wanted) + "\n")
        partial.rename(folder)  # onto an empty one, if there is one
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        several = isinstance(error, shutil.Error)  # of each file: from, to, why
        why = error.args[0][0][2] if several else error.strerror
        raise UserError(f"--fork: cannot copy {origin.run} to {folder}: {why}") from error
    return True
