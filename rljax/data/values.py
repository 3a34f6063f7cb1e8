"""What the columns of a row must hold: text, chat messages, numbers, labels."""

import math
import reprlib
from typing import Any

import numpy as np

from rljax.errors import nearest

Row = dict[str, Any]
Turns = list[dict[str, Any]]  # chat messages

LARGEST = float(np.finfo(np.float32).max)  # a number that an array of floats holds

ROLES = ("system", "developer", "user", "assistant", "tool")


class RowError(ValueError):
    """What is wrong with a row."""


def said(row: Row, column: str) -> str | Turns:
    """A column of text or of chat messages, neither of them empty."""
    value = row[column]
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list):
        return turns(row, column)
    raise RowError(f'"{column}": expected text or chat messages, got {reprlib.repr(value)}')


def turns(row: Row, column: str) -> Turns:
    """A column of chat messages, each with a role and a text, perhaps with a weight of 0 or 1.

    What is null in a message is taken away: parquet has no other way to say that it is not there.
    """
    value = row[column]
    if not isinstance(value, list):
        raise RowError(f'"{column}": expected chat messages, got {reprlib.repr(value)}')
    if not value:
        raise RowError(f'"{column}": an empty conversation')
    for number, turn in enumerate(value, start=1):
        where = f'"{column}", message {number}'
        if not isinstance(turn, dict):
            raise RowError(f"{where}: expected a role and a content, got {reprlib.repr(turn)}")
        role, content, weight = (turn.get(key) for key in ("role", "content", "weight"))
        if role is None:
            raise RowError(f"{where}: no role")
        if role not in ROLES:
            raise RowError(f"{where}: unknown role {role!r}; {nearest(str(role), ROLES)}")
        if content is None:
            raise RowError(f"{where}: no content")
        if not isinstance(content, str):
            raise RowError(f"{where}: expected text as content, got {reprlib.repr(content)}")
        if weight not in (None, 0, 1):
            raise RowError(f"{where}: the weight of a message is 0 or 1, got {weight!r}")
    return [{key: x for key, x in turn.items() if x is not None} for turn in value]


def number(row: Row, column: str, *, minimum: float = -math.inf) -> float:
    """A column of finite numbers, perhaps written as text."""
    value = row[column]
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        value = float(value)
    except (ValueError, OverflowError):
        value = math.nan
    if not (abs(value) <= LARGEST and value >= minimum):
        least = "" if minimum == -math.inf else f" of at least {minimum:g}"
        raise RowError(f'"{column}": expected a number{least}, got {reprlib.repr(row[column])}')
    return value


def truth(row: Row, column: str) -> bool:
    """A column of booleans, or of 0 and 1, perhaps written as text.

    >>> truth({"label": "False"}, "label"), truth({"label": 1}, "label")
    (False, True)
    """
    value = row[column]
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.lower())
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise RowError(
            f'"{column}": expected true or false, or 1 or 0, got {reprlib.repr(row[column])}'
        )
    return bool(value)
