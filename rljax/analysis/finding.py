"""Which folders hold records, and the names by which runs are told apart."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rljax.errors import UserError

METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
EVENT_FILES = "*tfevents*"  # TensorBoard's, of any trainer
MOST_LEVELS = 4  # that are searched below a folder


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders with records: those given, or else those that lie in them; each once.

    A folder with records is one run, whatever lies below it. Raises ``UserError`` for a folder that
    is not there, or in which nothing is found.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            what = (
                "a file; the folder is needed that it lies in" if folder.exists() else "not there"
            )
            raise UserError(f"--log-dir: {folder} is {what}")
        try:
            runs = list(_runs_in(folder, MOST_LEVELS))
        except OSError as error:
            raise UserError(f"--log-dir: cannot read {error.filename}: {error.strerror}") from error
        if not runs:
            raise UserError(
                f"--log-dir: {folder} holds no records: neither {METRICS} nor TensorBoard's event "
                "files, in it or in the folders below it"
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of their paths that tell the folders apart.

    >>> labels([Path("/a/x/run"), Path("/a/y/run")]), labels([Path("/logs/with"), Path("/b/c")])
    (['x/run', 'y/run'], ['with', 'c'])
    """
    paths = [folder.resolve().parts for folder in folders]
    count = 1
    while count < max(map(len, paths), default=0):
        if len({path[-count:] for path in paths}) == len(set(paths)):
            break
        count += 1
    return ["/".join(path[-count:]) for path in paths]


def has_events(folder: Path) -> bool:
    return any(folder.glob(EVENT_FILES))


def _runs_in(folder: Path, levels: int) -> Iterator[Path]:
    if (folder / METRICS).is_file() or (folder / EVALUATIONS).is_file() or has_events(folder):
        yield folder
    elif levels:
        below = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
        for path in sorted(below):
            yield from _runs_in(path, levels - 1)
