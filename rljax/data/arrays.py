"""Columns of data as arrays, over all rows."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from rljax.data.rows import Rows
from rljax.data.values import LARGEST
from rljax.errors import UserError

NO_TOKEN = -1  # pads text columns: no vocabulary has it


def pad(sequences: Sequence[Sequence[int]], width: int, value: int, *, left: bool) -> np.ndarray:
    """An int32 array [rows, width] of sequences no longer than that.

    Raises ``UserError`` if it does not fit into the memory.

    >>> pad([[7, 8], [9]], 3, 0, left=True).tolist()
    [[0, 7, 8], [0, 0, 9]]
    """
    try:
        array = np.full((len(sequences), width), value, np.int32)
    except MemoryError as error:
        raise UserError(
            f"{len(sequences):,} rows of {width:,} tokens each do not fit into the memory"
        ) from error
    for row, sequence in zip(array, sequences, strict=True):
        if len(sequence):
            row[-len(sequence) if left else 0 : None if left else len(sequence)] = sequence
    return array


def fingerprint_of(*arrays: np.ndarray) -> str:
    """A hash of arrays, by which to tell whether they are the same."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def column(sources: Sequence[Rows], name: str, tokenizer) -> np.ndarray | None:
    """A column of all sources: numbers as they are, text as tokens [rows, longest], padded with
    ``NO_TOKEN``; None for anything else, and where it is text in one source and numbers in another.

    Raises ``UserError`` for a source with values of several types, or with a number that does not
    fit: a whole number beyond 32 bits, NaN, an infinity.
    """
    kinds = {_kind(source, name) for source in sources}
    values = [row.get(name) for source in sources for row in source.rows]
    if kinds == {"text"}:
        ids = tokenizer(values, add_special_tokens=False)["input_ids"]
        return pad(ids, max(map(len, ids)), NO_TOKEN, left=False)
    if kinds == {"number"}:
        array = np.asarray(values)
        return array.astype({"f": np.float32, "i": np.int32, "b": np.bool_}[array.dtype.kind])
    return None


def _kind(source: Rows, name: str) -> Literal["text", "number", "other"]:
    first = _kind_of(source.rows[0].get(name))
    kinds = [_kind_of(row.get(name)) for row in source.rows]
    if first == "other" and set(kinds) == {"other"}:
        return first
    for index, (row, kind) in enumerate(zip(source.rows, kinds, strict=True)):
        value = row.get(name)
        if kind != first:
            raise UserError(
                f'{source.where(index)}: "{name}" is {value!r}, another type than in row 1'
            )
        if isinstance(value, int) and abs(value) > np.iinfo(np.int32).max:
            raise UserError(f'{source.where(index)}: "{name}" is {value}, beyond 32 bits')
        if isinstance(value, float) and not abs(value) <= LARGEST:
            what = "beyond 32 bits" if math.isfinite(value) else "no finite number"
            raise UserError(f'{source.where(index)}: "{name}" is {value}, {what}')
    return first


def _kind_of(value: Any) -> Literal["text", "number", "other"]:
    if isinstance(value, str):
        return "text"
    return "number" if isinstance(value, bool | int | float) else "other"
