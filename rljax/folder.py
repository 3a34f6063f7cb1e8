"""The folder of a run: which it is, whose run it holds, and that all processes share it."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml

from rljax import __version__
from rljax.build import Build
from rljax.changes import check_same_run
from rljax.config import Config, resolved
from rljax.errors import UserError
from rljax.host.agree import agreed, check_same, is_writer, meet
from rljax.host.files import write_whole
from rljax.host.metrics import read_records
from rljax.host.provenance import git_commit, versions
from rljax.host.secrets import redacted
from rljax.host.steps import DamagedError, read_meta, sealed, steps_in, unsealed
from rljax.host.stopping import TransientError

ACCEPTED = "accepted.json"  # with what a run was last gone on
BEGINNING = "the beginning"  # from where a run goes on that has kept nothing
FORK = "fork.json"  # in the folder of a run that began as another's
SEEN_SECONDS = 30  # that a shared folder may take to show what another host wrote


class Opened(NamedTuple):
    """The folder of a run, ready to be written to."""

    changed: list[str]  # of the config and the rows, since the run was last gone on with
    about: dict[str, Any]  # what is saved with every checkpoint: config, rows, versions, commit


def run_folder(run_dir: str | None) -> Path:
    """The folder of a run, by default the next of runs/0001, runs/0002, …; as process 0 has it."""
    if run_dir and "://" in run_dir:
        raise UserError(f"run_dir: {run_dir} is no folder; mount the bucket, and name where")

    def choose() -> str:
        folder = Path(run_dir) if run_dir else numbered_folder("runs")
        return str(folder if jax.process_count() == 1 else folder.absolute())

    return Path(agreed(choose))


def numbered_folder(parent: str) -> Path:
    """The first free ``parent/NNNN``, made at once, so that no two runs take the same."""
    numbers = [int(p.name) for p in Path(parent).glob("*") if re.fullmatch(r"\d+", p.name)]
    for number in itertools.count(max(numbers, default=0) + 1):
        folder = Path(parent) / f"{number:04d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make a folder under {parent}/: {error.strerror}") from error
        return folder


@contextlib.contextmanager
def removed_if_refused(folder: Path) -> Iterator[None]:
    """Takes a folder that was new, or empty, away again if its run is refused before the first
    checkpoint, or before it was opened, so that the corrected run can have it."""
    try:
        is_new = not any(folder.iterdir())
    except OSError as error:
        is_new = isinstance(error, FileNotFoundError)
    try:
        yield
    except TransientError:
        raise
    except UserError:
        opened = (folder / "config.yaml").exists()
        if is_new and is_writer() and not (opened and steps_kept(folder) != BEGINNING):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def open_folder(
    folder: Path, config: Config, built: Build, *, may_change: bool = False, is_new: bool = False
) -> Opened:
    """Makes the folder of a run, or sees that it is of the same run, on every process.

    Args:
      may_change: the config and the rows may be others than those that the run went on with last.
      is_new: it must hold no run.

    Raises ``UserError`` if it is of another, has lost its checkpoints, cannot be written to, or is
    not the same folder, with the same config and rows, on all processes.
    """
    tree, rows = redacted(resolved(config)), hashes_of(built)
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)
    facts = {
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "version of rljax": __version__,
    }
    check_same(facts | {f"{name} data": found for name, found in rows.items()})

    def opened() -> tuple[list[str], dict[str, Any]]:
        about = {
            "config": json.loads(json.dumps(tree)),  # to be compared with what was read
            "data": rows,
            "versions": versions(),
            "git": git_commit(Path.cwd()),
            "forked_from": forked_from(folder),
        }
        if is_new and holds_run(folder):
            raise UserError(f"--resume never: {folder} holds a run; name another run_dir")
        _check_nothing_lost(folder)
        before = _last_accepted(folder)
        changed = [] if before is None else _changes(before, about, folder, may_change)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_links(folder)
            write_whole(folder / "config.yaml", text)
            write_whole(folder / ACCEPTED, json.dumps(sealed(about)) + "\n")
        except OSError as error:
            raise UserError(f"cannot write to run_dir {folder}: {error.strerror}") from error
        return changed, about

    changed, about = agreed(opened)
    check_shared(folder)
    return Opened(changed, about)


def holds_run(folder: Path) -> bool:
    """Whether a run was begun in a folder."""
    return (folder / "config.yaml").exists() or last_meta(folder) is not None


def forked_from(folder: Path) -> dict[str, Any] | None:
    """The run, and its step, that the one in a folder began as; None if it began by itself."""
    path = folder / FORK
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def restore_config(folder: Path) -> None:
    """Writes a run's config anew if the file is gone, as its newest checkpoint has it."""
    meta = last_meta(folder)
    if meta is not None and not (folder / "config.yaml").exists():
        text = yaml.safe_dump(meta["config"], sort_keys=False, default_flow_style=None)
        write_whole(folder / "config.yaml", text)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Sees to it that no other process writes to the folder of a run, as far as its file system
    knows locks; that of a process that is killed is gone with it.

    Raises ``TransientError`` if one does.
    """
    if not is_writer() or not folder.is_dir():
        yield
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(number)
        raise TransientError(
            f"another process is at work on the run in {folder}; wait for it, or end it"
        ) from error
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(number)


def phase_folders(folder: Path) -> dict[str, Path]:
    """Where the phases of a run keep their records and ``checkpoints``, the last phase first."""
    return {"train": folder, "warm_start": folder / "warm_start"}


def last_meta(folder: Path) -> dict[str, Any] | None:
    """What the run in a folder saved beside its newest state, as far as it can be read."""
    for part in phase_folders(folder).values():
        for step in reversed(steps_in(part / "checkpoints")):
            with contextlib.suppress(DamagedError):
                return read_meta(part / "checkpoints", step)
    return None


def _last_accepted(folder: Path) -> dict[str, Any] | None:
    """The config and the rows that a run was last gone on with, if it has saved anything.

    They may not be in a checkpoint yet.
    """
    meta = last_meta(folder)
    with contextlib.suppress(DamagedError):
        return meta and unsealed(folder / ACCEPTED)
    return meta


def _changes(
    before: dict[str, Any], about: dict[str, Any], folder: Path, may_change: bool
) -> list[str]:
    """How config and rows differ from those that the run went on with last, in words."""
    changed = check_same_run(before["config"], about["config"], folder, allowed=may_change)
    then, now = before["data"], about["data"]
    trains = bool(steps_in(folder / "checkpoints"))  # else it is in its warm start
    learned = ["data.train"] if trains else ["data.train", "warm_start.data"]
    others = [name for name in learned if name in now and then.get(name) != now[name]]
    for name in others:
        if not may_change:
            raise UserError(
                f"{folder} was begun with other rows, or in another order: those of {name} have "
                "changed; put them back, use another run_dir, or go on with these by "
                "--allow-config-change"
            )
        changed.append(f"other rows of {name}")
    for name in now:
        if name.startswith("data.eval") and then.get(name) != now[name]:
            changed.append(f"other rows of {name}")
    return changed


def _check_nothing_lost(folder: Path) -> None:
    """A run saves before its first step: without a checkpoint there can be no record of one."""
    for part in phase_folders(folder).values():
        if steps_in(part / "checkpoints"):
            return
        if count := len(read_records(part / "metrics.jsonl")):
            raise UserError(
                f"{part} has records of {count} steps, but no checkpoint; put its checkpoints back "
                "from a copy, or begin anew in another run_dir"
            )


def hashes_of(built: Build) -> dict[str, str]:
    """A hash of each table of rows, and of the order in which they are learned from."""
    hashes = {"data.train": built.train.batches.fingerprint}
    if built.warm_start is not None:
        hashes["warm_start.data"] = built.warm_start.batches.fingerprint
    if built.answering is not None:
        hashes["data.eval"] = built.answering.table.fingerprint
    if built.measuring is not None:
        hashes["data.eval, given"] = built.measuring.table.fingerprint
    return hashes


def check_links(folder: Path) -> None:
    """Raises ``UserError`` if a link in a run's folder would have the run write elsewhere."""
    within = folder.resolve()
    for path in (path for depth in ("*", "*/*") for path in folder.glob(depth)):
        if path.is_symlink() and not path.resolve().is_relative_to(within):
            raise UserError(
                f"{path} is a link to {path.resolve()}, out of the folder of the run, which writes "
                "nowhere else; put what is there in its place, or link the whole folder"
            )


def check_shared(folder: Path) -> None:
    """Raises ``UserError`` if what process 0 writes to the folder is not seen here."""
    if jax.process_count() == 1:
        return
    path = folder / agreed(lambda: f".seen-{uuid.uuid4().hex}")
    if is_writer():
        path.touch()
    meet("written")
    deadline = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"the run folder {folder} is not the one that process 0 writes to: all hosts need "
                "one folder that they share"
            )
        time.sleep(0.2)
    meet("seen")
    if is_writer():
        path.unlink()


def steps_kept(folder: Path) -> str:
    """From where the run in a folder goes on, in words."""
    for phase, part in phase_folders(folder).items():
        if kept := steps_in(part / "checkpoints"):
            return f"step {kept[-1]}{'' if phase == 'train' else ' of the warm start'}"
    return BEGINNING
