"""The rows of a single file: JSON, CSV or parquet.

Whatever is malformed ends in a ``UserError`` of one line that names the file and the place in it.
"""

import codecs
import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rljax.data.rows import Rows
from rljax.errors import UserError, nearest

# Columns of a CSV that are text, even where all of it reads as numbers.
TEXT_COLUMNS = (
    *("prompt", "question", "completion", "response", "chosen", "rejected"),
    *("answer", "ground_truth", "solution"),
)


def read_file(path: Path) -> Rows:
    """The rows of a file, by its suffix. Raises ``UserError`` if there are none."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise UserError(
            f'{path}: "{suffix}" is not the suffix of a data file; {nearest(suffix, READERS)}'
        )
    if not path.is_file():
        raise UserError(f"{path}: no file, but a device, a pipe or a socket")
    rows = READERS[suffix](path)
    if not rows.rows:
        raise UserError(f"{path}: no rows")
    return rows


def one_line(error: Exception) -> str:
    """An error of a library's, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def _text(path: Path) -> str:
    """A text file, without the mark that some editors begin it with."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the data file {path}: {error.strerror}") from error
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        at = error.start + len(data) - len(data.removeprefix(codecs.BOM_UTF8))
        raise UserError(
            f"{path}:{data.count(10, 0, at) + 1}: not UTF-8 text: byte 0x{data[at]:02x} at {at}"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}:{line}: a NUL byte; this is no text file")
    return text


def _json_lines(path: Path) -> Rows:
    return _rows_of_lines(path, _text(path))


def _rows_of_lines(path: Path, text: str) -> Rows:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_checked(_parsed(line, path, number), f"{path}:{number}"))
            lines.append(number)
    return Rows(rows, str(path), lines)


def _json(path: Path) -> Rows:
    text = _text(path)
    if not text.strip():
        return Rows([], str(path))
    try:
        tree = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _rows_of_lines(path, text)
        said = f"{error.msg}, column {error.colno}"
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {said}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {one_line(error)}") from error
    if isinstance(tree, _Repeated):
        raise UserError(f'{path}: the key "{tree.key}" is there twice')
    if isinstance(tree, dict) and isinstance(tree.get("data"), list):
        tree = tree["data"]
    elif isinstance(tree, dict) and "\n" not in text.strip():
        return _rows_of_lines(path, text)
    if not isinstance(tree, list):
        raise UserError(
            f'{path}: expected a list of objects, {{"data": [...]}} or an object per line, got '
            f"{_short(' '.join(text.split()))}"
        )
    rows = [_checked(row, f"{path}: row {number}") for number, row in enumerate(tree, start=1)]
    return Rows(rows, str(path))


class _Repeated(dict):
    """An object of a JSON file that has a key twice."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        row = _Repeated(row)
        row.key = Counter(key for key, _ in pairs).most_common(1)[0][0]
    return row


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        said = f"{error.msg}, column {error.colno}"
        raise UserError(f"{path}:{number}: not valid JSON: {said}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets
        raise UserError(f"{path}:{number}: cannot be read as JSON: {one_line(error)}") from error


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, got {_short(json.dumps(row))}")
    try:
        fault = _fault(row, "")
    except RecursionError:
        fault = "too many levels"
    if fault:
        raise UserError(f"{where}: {fault}")
    return row


def _fault(value: Any, path: str) -> str | None:
    """What is in a JSON value that parsers let pass, and that is no data."""
    if isinstance(value, _Repeated):
        return f'the key "{value.key}" is there twice'
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        found = (_fault(item, f"{path}.{key}" if path else str(key)) for key, item in inner)
        return next(filter(None, found), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f'"{path}" is {value}, no finite number'
    if (
        isinstance(value, str)
        and not value.isascii()
        and any("\ud800" <= c <= "\udfff" for c in value)
    ):
        return f'"{path}" has half of a surrogate pair, which is no character'
    return None


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "…"


def _csv(path: Path) -> Rows:
    text = _text(path)
    limit = csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for cells in reader:
            if cells and not names:
                names = _header(cells, f"{path}:{start}")
            elif cells:
                if len(cells) != len(names):
                    raise UserError(f"{path}:{start}: {len(cells)} values for {len(names)} columns")
                rows.append(cells)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{start}: not valid CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)
    if not rows:
        return Rows([], str(path))
    columns = [
        values if name in TEXT_COLUMNS else _typed(values)
        for name, values in zip(names, zip(*rows, strict=True), strict=True)
    ]
    return Rows(
        [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
        str(path),
        lines,
    )


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{where}: column {number} has no name")
        if names.index(name) < number - 1:
            raise UserError(f'{where}: the column "{name}" is there twice')
    return names


def _typed(values: Sequence[str]) -> Sequence[Any]:
    """The cells of a column as numbers or booleans, where all that are not empty are such."""
    for read in (_boolean, _number):
        read_values = [None if value == "" else read(value) for value in values]
        if all((new is None) == (old == "") for new, old in zip(read_values, values, strict=True)):
            return values if set(values) == {""} else read_values
    return values


def _boolean(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text.lower())


def _number(text: str) -> int | float | None:
    """A number that is written as Python writes it, so that nothing is lost."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if str(number) == text and math.isfinite(number):
            return number
    return None


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as file:
            data = pyarrow.parquet.ParquetFile(file)
            names = data.schema_arrow.names
            if len(set(names)) < len(names):
                twice = Counter(names).most_common(1)[0][0]
                raise UserError(f'{path}: the column "{twice}" is there twice')
            return Rows(data.read().to_pylist(), str(path))
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a parquet file, or a damaged one: {one_line(error)}"
        ) from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
