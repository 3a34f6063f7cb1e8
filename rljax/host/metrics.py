"""The run's own records: one JSON object per line, appended and never twice."""

import json
import math
from pathlib import Path
from typing import Any


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


def _line(record: dict[str, Any]) -> str:
    return json_text(record) + "\n"
