"""Rows of data, and where each of them stands."""

from typing import Any, NamedTuple


class Rows(NamedTuple):
    """Rows as a file or a function gave them."""

    rows: list[dict[str, Any]]
    name: str  # of the file or function, for messages
    lines: list[int] | None = None  # of the file, if it has any
    places: list[str] | None = None  # of rows that several files hold, or that were left

    def where(self, index: int) -> str:
        """The place of a row, for messages.

        >>> Rows([{}], "train.jsonl", [17]).where(0), Rows([{}], "train.parquet").where(0)
        ('train.jsonl:17', 'train.parquet: row 1')
        """
        if self.places is not None:
            return self.places[index]
        if self.lines is not None:
            return f"{self.name}:{self.lines[index]}"
        return f"{self.name}: row {index + 1}"
