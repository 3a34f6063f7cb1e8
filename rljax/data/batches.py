"""Endless batches, each a function of its index.

``batches[step]`` is the same whenever and wherever it is asked for, so that the step counter of a
TrainState is the whole data position.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from rljax.data.packing import PackedTable
from rljax.data.sequences import SequenceTable
from rljax.data.tables import PromptTable
from rljax.errors import UserError
from rljax.types import Experience, Prompts

SEEN_BATCHES = 8  # by which their order is told
ENDLESS = 2**40  # epochs; mixing data sets needs a length that fits a machine word

Table = PromptTable | SequenceTable | PackedTable


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Batches of a table's items: ``batches[step]``."""

    table: Table
    order: Any  # order[step]: the items of a batch
    widths: np.ndarray | None = None  # of an item's bucket; None: that of the table

    def __getitem__(self, step: int) -> Prompts | Experience:
        return self._take(self.items(step))

    @property
    def fingerprint(self) -> str:
        """A hash of the rows, and of the first batches: their order depends on the seed, on what is
        mixed and how, and on how equal lengths are sorted, which differs between processors."""
        first = [self.items(step) for step in range(SEEN_BATCHES)]
        order = hashlib.sha256(np.concatenate(first).astype("<i8").tobytes())
        return hashlib.sha256(f"{self.table.fingerprint} {order.hexdigest()}".encode()).hexdigest()

    def items(self, step: int) -> np.ndarray:
        """The items of a batch."""
        return self.order[step]

    def part(self, step: int, which: np.ndarray) -> Prompts | Experience:
        """Only some items of a batch, by their places in it, for a host that holds no others."""
        return self._take(self.items(step), which)

    def over(self, table: Table) -> "Batches":
        """The same order over another table, such as one with reference log-probs."""
        if len(table) != len(self.table):
            raise ValueError(f"{len(table)} items in the place of {len(self.table)}")
        return dataclasses.replace(self, table=table)

    def _take(
        self, items: np.ndarray, which: np.ndarray | slice = slice(None)
    ) -> Prompts | Experience:
        if self.widths is None:
            return self.table.take(items[which])
        return self.table.take(items[which], width=int(self.widths[items[0]]))


def make_batches(
    table: Table, *, batch_size: int, seed: int, weights: Sequence[float] | None = None
) -> Batches:
    """Batches of items, shuffled anew in every epoch of their source.

    Items of several sources are interleaved, evenly and by ``weights``, which are met within 1 %.

    Args:
      batch_size: in items. Of prompts it may be more than the table has, which then recur.
      weights: of the sources, by default the number of their items.
    """
    if batch_size > len(table) and not isinstance(table, PromptTable):
        raise UserError(f"{table.name}: {len(table)} rows are too few for batches of {batch_size}")
    if weights is None:
        weights = [len(part) for part in table.parts]
    if len(weights) != len(table.parts) or not all(0 < w < math.inf for w in weights):
        raise UserError(
            f"weights: expected a positive number for each of {len(table.parts)} sources, got "
            f"{list(weights)}"
        )
    if len(table.parts) == 1:
        order = _shuffled(range(len(table)), seed).repeat()
    else:
        shuffled = [
            _shuffled(part.tolist(), seed + number) for number, part in enumerate(table.parts)
        ]
        order = grain.MapDataset.mix([part.repeat(ENDLESS) for part in shuffled], weights=weights)
    return Batches(table, order.batch(batch_size, batch_fn=np.array))


def bucketed_batches(table: SequenceTable, *, batch_size: int, buckets: int, seed: int) -> Batches:
    """Batches of items of about the same length.

    Items are sorted by length into ``buckets`` of equal count, and a batch is drawn from one of
    them and padded to its longest, so that a step is compiled once for each bucket.
    """
    if len(table) < buckets * batch_size:
        raise UserError(
            f"{table.name}: {len(table)} rows are too few for {buckets} buckets of batches of "
            f"{batch_size}; at least {buckets * batch_size} are needed"
        )
    lengths = table.item_lengths
    parts = np.array_split(np.argsort(lengths, kind="stable"), buckets)
    widths = np.zeros(len(table), int)
    for part in parts:
        widths[part] = lengths[part].max()
    batches = [
        _shuffled(part.tolist(), seed).repeat(ENDLESS).batch(batch_size, batch_fn=np.array)
        for part in parts
    ]
    weights = [len(part) / len(table) for part in parts]
    return Batches(table, grain.MapDataset.mix(batches, weights=weights), widths)


def _shuffled(items: Sequence[int], seed: int):
    return grain.MapDataset.source(items).seed(seed).shuffle()
