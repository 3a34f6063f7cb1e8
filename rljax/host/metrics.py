"""The run's own records: one JSON object per line, redacted, appended and never twice."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rljax.host.files import Appending, write_whole
from rljax.host.secrets import redacted


class Line(NamedTuple):
    """Of a file of records."""

    text: str
    record: dict[str, Any] | None  # None: it cannot be read


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none if it is absent; lines that a crash cut short or damaged are
    left out."""
    return [line.record for line in read_lines(path) if line.record is not None]


def read_lines(path: Path) -> Iterator[Line]:
    """The whole lines of a file; none if it is absent."""
    if path.is_file():
        *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
        yield from (Line(text, _record(text)) for text in whole)


class Records:
    """An append-only file of records, each with a ``step``."""

    def __init__(
        self,
        path: Path | None,
        *,
        up_to_step: int | None = None,
        known: Sequence[dict[str, Any]] | None = None,
        report: Callable[[str], None] = print,
    ):
        """Goes on after the records up to and including ``up_to_step``; later ones, which the
        resumed run will write again, are dropped. None starts anew. Records that are ``known`` take
        the place of those in the file.

        Without a ``path`` nothing is written: another process of the run does it. What cannot be
        read or written is told to ``report``, and stops nothing."""
        self._file = None
        if path is None:
            return

        def is_kept(line: Line) -> bool:
            return line.record is not None and line.record["step"] <= up_to_step

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if known is None:
                lines = [] if up_to_step is None else list(read_lines(path))
                if unread := sum(line.record is None for line in lines):
                    before = path.with_name(f"{path.name}.damaged")
                    shutil.copy2(path, before)
                    report(f"{path}: {unread} damaged line(s) left out; as it was: {before}")
                text = "".join(f"{line.text}\n" for line in lines if is_kept(line))
            else:
                text = "".join(_line(record) for record in known)
            if path.exists() and path.read_bytes().startswith(text.encode()):
                with path.open("r+b") as file:  # which needs no room
                    file.truncate(len(text.encode()))
            else:
                write_whole(path, text)
            self._file = Appending(path, report)
        except OSError as error:
            report(f"cannot write to {path}: {error.strerror}")

    def write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(_line(record))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Journal:
    """What happened to a run, over all its starts: one JSON object per line, with the time.

    What cannot be written is told to ``report``, and stops nothing."""

    def __init__(self, path: Path, report: Callable[[str], None]):
        self._file = None
        try:
            self._file = Appending(path, report)
        except OSError as error:
            report(f"cannot write to {path}: {error.strerror}")

    def write(self, event: str, fields: dict[str, Any]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if self._file is not None:
            self._file.write(_line({"time": now, "event": event, **fields}))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON, which has no number that is not finite: null stands for it.

    >>> json_text({"step": 3, "loss": float("nan")})
    '{"step": 3, "loss": null}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(text: str) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _line(record: dict[str, Any]) -> str:
    return json_text(redacted(record, by_looks=False)) + "\n"
