"""What becomes of rows that are too long, and which rows are left."""

from typing import Literal, NamedTuple

import numpy as np

from rljax.data.rows import Rows
from rljax.errors import UserError


class Limits(NamedTuple):
    """How long a prompt and a whole row may be, and what becomes of one that is longer.

    ``drop`` leaves the row out. ``truncate`` takes tokens from the beginning of a prompt, then from
    the end of a row; a row of which nothing is left to learn is left out.
    """

    max_prompt_tokens: int | None = None
    max_tokens: int | None = None  # of prompt and answer
    overlong: Literal["refuse", "drop", "truncate"] = "refuse"


class Report:
    """What became of rows that are too long, or that have nothing to learn."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.counts = {"prompt": 0, "row": 0}
        self.empty = 0

    def _limit(self, what: str) -> int | None:
        return self.limits.max_prompt_tokens if what == "prompt" else self.limits.max_tokens

    def over(
        self,
        rows: Rows,
        lengths: list[int],
        what: Literal["prompt", "row"],
        but: np.ndarray | bool = False,
    ) -> np.ndarray:
        """Which of the rows are too long; those in ``but`` have been counted already."""
        limit = self._limit(what)
        if limit is None:
            return np.full(len(lengths), False)
        over = np.array(lengths) > limit
        if over.any() and self.limits.overlong == "refuse":
            first = int(np.argmax(over))
            key = "max_prompt_tokens" if what == "prompt" else "max_tokens"
            raise UserError(
                f"{rows.where(first)}: the {what} has {lengths[first]} tokens, more than "
                f"data.{key}={limit}; so have {over.sum()} of {len(over)} rows, and the longest "
                f"has {max(lengths)} (data.overlong may be drop or truncate)"
            )
        self.counts[what] += int((over & ~np.asarray(but)).sum())
        return over

    def note(self, count: int, kind: str) -> str:
        """Such as "7,461 prompts (12 longer than 256 tokens dropped)"."""
        done = "dropped" if self.limits.overlong == "drop" else "truncated"
        words = []
        for what, over in self.counts.items():
            if over:
                of = " with prompts" if what == "prompt" and kind != "prompts" else ""
                words.append(f"{over:,}{of} longer than {self._limit(what):,} tokens {done}")
        if self.empty:
            words.append(f"{self.empty:,} with nothing to learn dropped")
        kind = kind.removesuffix("s") if count == 1 else kind
        return f"{count:,} {kind}" + (f" ({', '.join(words)})" if words else "")


def cropped(ids: list[int], tokens: int | None) -> list[int]:
    return ids if tokens is None else ids[-tokens:]


def left(source: Rows, stays: np.ndarray) -> list[int]:
    if not stays.any():
        raise UserError(
            f"{source.name}: no row is left: all are too long, or have no learned token"
        )
    return np.flatnonzero(stays).tolist()


def rows_at(source: Rows, at: list[int]) -> Rows:
    if len(at) == len(source.rows):
        return source
    return Rows([source.rows[i] for i in at], source.name, places=[source.where(i) for i in at])


def parts(counts: list[int]) -> list[np.ndarray]:
    """The indices of each source's rows."""
    return np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])


def names(sources: list[Rows]) -> str:
    return " and ".join(dict.fromkeys(source.name for source in sources))
