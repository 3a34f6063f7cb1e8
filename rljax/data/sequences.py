"""Sequences to learn from as they are given, padded on the right."""

import copy
from collections import abc
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rljax.data.arrays import fingerprint_of
from rljax.types import Experience

FILLER = -1  # in place of an item: a row that nothing is learned from


class Sequence(NamedTuple):
    """Tokens, and how much each weighs in the loss; what stands first has no probability, so that
    it weighs nothing."""

    tokens: list[int]
    weights: list[float]


class SequenceTable:
    """Items of one sequence each, or of the two of a pair, as arrays.

    ``parts`` are the items of each source, ``note`` says how many there are, and ``mean_tokens`` is
    how many are learned in a sequence, on average.
    """

    def __init__(
        self,
        sequences: abc.Sequence[Sequence],
        *,
        pad_id: int,
        name: str = "",
        together: int = 1,
        parts: list[np.ndarray] | None = None,
        note: str = "",
        desirable: abc.Sequence[bool] | None = None,
        margin: abc.Sequence[float] | None = None,
        mismatched: "SequenceTable | None" = None,
    ):
        """Args:
        sequences: those of an item adjacent.
        together: sequences of an item; of a pair, the chosen response is the first.
        desirable: of each sequence, where they are labelled.
        margin: of each item.
        mismatched: a table of as many rows.
        """
        self.pad_id, self.name, self.together = pad_id, name, together
        self.lengths = np.array([len(row.tokens) for row in sequences])
        self.width = int(self.lengths.max())
        self.note = note
        items = len(sequences) // together
        self.parts = [np.arange(items)] if parts is None else parts
        self._starts = np.cumsum(self.lengths) - self.lengths
        self._tokens = np.concatenate([np.asarray(row.tokens, np.int32) for row in sequences])
        self._weights = np.concatenate([np.asarray(row.weights, np.float32) for row in sequences])
        self._weights[self._starts] = 0.0
        self.is_weighted = bool((~np.isin(self._weights, (0.0, 1.0))).any())
        learned = np.add.reduceat((self._weights > 0).astype(int), self._starts)
        self.mean_tokens = float(np.mean(learned))
        self._desirable = None if desirable is None else np.asarray(desirable, np.bool_)
        self._margin = None if margin is None else np.asarray(margin, np.float32)
        self.mismatched = mismatched
        self.ref_logprobs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lengths) // self.together

    @property
    def fingerprint(self) -> str:
        """A hash of what is learned from, in its order."""
        arrays = [self.lengths, self._tokens, self._weights, self._desirable, self._margin]
        return fingerprint_of(*(array for array in arrays if array is not None))

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but sequences: no pairs, no labels."""
        return self.together == 1 and self._desirable is None

    @property
    def longest(self) -> int:
        """Positions that the longest row takes, of those that are mismatched too."""
        return max(self.width, 0 if self.mismatched is None else self.mismatched.width)

    @property
    def item_lengths(self) -> Int[np.ndarray, " I"]:
        """Of the longest sequence of every item."""
        return self.lengths.reshape(-1, self.together).max(axis=1)

    def sequence(self, row: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The tokens and the weights of a row."""
        at = slice(self._starts[row], self._starts[row] + self.lengths[row])
        return self._tokens[at], self._weights[at]

    def rows_of(self, items: abc.Sequence[int] | np.ndarray) -> Int[np.ndarray, " B"]:
        """The rows of items, those of an item adjacent."""
        items = np.asarray(items)[:, None]
        rows = np.where(items == FILLER, FILLER, items * self.together + np.arange(self.together))
        return rows.reshape(-1)

    def take(self, items: abc.Sequence[int] | np.ndarray, width: int | None = None) -> Experience:
        """The rows of items, in ``width`` columns; by default those that the longest of all needs.

        A ``FILLER`` among the items is a row whose first token is there, so that attention has
        something to attend to, and of which nothing is learned.
        """
        rows = self.rows_of(items)
        filler = rows == FILLER
        columns = np.arange(self.width if width is None else width)
        ends = np.where(filler, 0, self.lengths[rows])
        mask = columns < ends[:, None]
        at = np.where(mask, self._starts[rows][:, None] + columns, 0)
        weights = np.where(mask, self._weights[at], np.float32(0))
        tokens = np.where(mask, self._tokens[at], np.int32(self.pad_id))
        mask[filler, 0] = True
        desirable = margin = reference = None
        if self.together == 2:
            desirable = np.tile([True, False], len(rows) // 2)
        elif self._desirable is not None:
            desirable = self._desirable[rows] & ~filler
        if self._margin is not None:
            margin = np.where(filler, np.float32(0), self._margin[rows // self.together])
        if self.ref_logprobs is not None:
            reference = np.where(filler[:, None], np.float32(0), self.ref_logprobs[rows])
            reference = reference[:, : len(columns)]
        return Experience(
            tokens=tokens,
            mask=mask,
            action_mask=weights > 0,
            data_weights=weights if self.is_weighted else None,
            desirable=desirable,
            margin=margin,
            mismatched=None if self.mismatched is None else self.mismatched.take(items),
            ref_logprobs=reference,
        )

    def with_reference(
        self,
        ref_logprobs: Float[np.ndarray, "R {self.width}"],
        mismatched: Float[np.ndarray, "R W"] | None = None,
    ) -> "SequenceTable":
        """A copy whose rows come with the log-probs of the reference policy, [rows, width]."""
        table = copy.copy(self)
        table.ref_logprobs = np.asarray(ref_logprobs, np.float32)
        if mismatched is not None:
            table.mismatched = self.mismatched.with_reference(mismatched)
        return table
