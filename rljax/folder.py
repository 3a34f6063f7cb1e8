"""The folder of a run: which it is, whose run it holds, and that all processes share it."""

import contextlib
import hashlib
import itertools
import json
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax
import yaml

from rljax import __version__
from rljax.build import Build
from rljax.config import Config, read_yaml, resolved
from rljax.errors import UserError
from rljax.host.agree import agreed, check_same, is_writer, meet
from rljax.host.stopping import TransientError

MAY_CHANGE = ("run_dir", "mesh", "evaluation", "checkpoint")  # when a run is resumed
BEGINNING = "the beginning"  # from where a run goes on that has kept nothing
SEEN_SECONDS = 30  # that a shared folder may take to show what another host wrote


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
    checkpoint, so that the corrected run can have it."""
    try:
        is_new = not any(folder.iterdir())
    except OSError as error:
        is_new = isinstance(error, FileNotFoundError)
    try:
        yield
    except TransientError:
        raise
    except UserError:
        if is_new and is_writer() and steps_kept(folder) == BEGINNING:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def open_folder(folder: Path, config: Config, built: Build) -> None:
    """Makes the folder of a run, or sees that it is of the same run, on every process.

    Raises ``UserError`` if it is of another, cannot be written to, or is not the same folder, with
    the same config and rows, on all processes.
    """
    tree, rows = resolved(config), hashes_of(built)
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None)
    facts = {
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "version of rljax": __version__,
    }
    check_same(facts | {f"{name} data": found for name, found in rows.items()})
    if is_writer():
        path = folder / "config.yaml"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                check_same_run(read_yaml(path.read_text(encoding="utf-8")), tree, folder)
            path.write_text(text, encoding="utf-8")
            _check_rows(folder, rows["training"])
        except OSError as error:
            raise UserError(f"cannot write to run_dir {folder}: {error.strerror}") from error
    check_shared(folder)


def hashes_of(built: Build) -> dict[str, str]:
    """A hash of each table of rows."""
    tables = {"training": built.train.batches.table}
    if built.warm_start is not None:
        tables["warm start"] = built.warm_start.batches.table
    if built.answering is not None:
        tables["held-out"] = built.answering.table
    if built.measuring is not None:
        tables["held-out given"] = built.measuring.table
    return {name: table.fingerprint for name, table in tables.items()}


def _check_rows(folder: Path, training: str) -> None:
    """Sees that a resumed run learns from the rows that it began with."""
    path, rows = folder / "data.json", {"train": training}
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != rows:
        raise UserError(
            f"{folder} was begun with other rows: those of data.train have changed; put them "
            "back, or use another run_dir"
        )
    path.write_text(json.dumps(rows) + "\n", encoding="utf-8")


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
    for part, phase in ((folder, ""), (folder / "warm_start", " of the warm start")):
        kept = [int(p.name) for p in part.glob("checkpoints/*") if p.name.isdigit()]
        if kept:
            return f"step {max(kept)}{phase}"
    return BEGINNING


def check_same_run(old: dict, new: dict, folder: Path) -> None:
    """Raises ``UserError`` if a resumed run's config differs in more than ``MAY_CHANGE``."""
    before, now = (flatten(tree) for tree in (old, new))
    changed = {
        name: f"{name} {before.get(name)} -> {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name.split(".")[0] not in MAY_CHANGE
    }
    if changed:
        raise UserError(
            f"{folder} holds a run with another config ({'; '.join(changed.values())}); "
            "use that run's config, or another run_dir"
        )


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
