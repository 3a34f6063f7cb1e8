"""The run's own records: one JSON object per line, redacted, appended and never twice."""

import json
from pathlib import Path
from typing import Any

from rljax.host.secrets import redacted


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none if it is absent; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Records:
    """An append-only file of records, each with a ``step``."""

    def __init__(self, path: Path | None, *, up_to_step: int | None = None):
        """Goes on after the records up to and including ``up_to_step``; later ones, which the
        resumed run will write again, are dropped. None starts anew.

        Without a ``path`` nothing is written: another process of the run does it."""
        self._file = None
        if path is None:
            return
        kept = [] if up_to_step is None else read_records(path)
        kept = [record for record in kept if record["step"] <= (up_to_step or 0)]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(_line(record) for record in kept), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(_line(record))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(redacted(record, by_looks=False)) + "\n"
