"""Several sequences in a row, so that less of it is padding."""

from collections.abc import Sequence

import numpy as np

from rljax.data.sequences import FILLER, SequenceTable
from rljax.errors import UserError
from rljax.types import Experience


def pack(lengths: Sequence[int] | np.ndarray, width: int) -> list[list[int]]:
    """The indices of sequences in packs of at most ``width`` tokens: best fit, decreasing.

    The longest is placed first, each into the pack that it leaves the least room in. That takes at
    most 11/9 of the fewest packs possible, and 4 more.

    >>> pack([3, 5, 2, 4], 7)
    [[1, 2], [3, 0]]

    Source: D. S. Johnson, Near-optimal bin packing algorithms, 1973.
    """
    packs: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # packs by the tokens they have room for
    rooms = 0  # bit r is set where a pack has room for r tokens
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[index])
        if length > width:
            raise UserError(f"a sequence of {length} tokens does not fit a pack of {width}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = width, len(packs)
            packs.append([])
        packs[chosen].append(index)
        rest = room - length
        with_room.setdefault(rest, []).append(chosen)
        rooms |= 1 << rest
    return packs


class PackedTable:
    """Packs of a table's sequences, none with those of two sources.

    ``segments`` number the sequences of a pack from 1; padding is 0.
    """

    together = 1

    def __init__(self, table: SequenceTable, width: int):
        """Raises ``UserError`` for pairs and labelled rows, and for a sequence longer than
        ``width``."""
        if not table.is_plain:
            raise UserError(f"{table.name}: only demonstrations can be packed")
        if table.width > width:
            raise UserError(
                f"{table.name}: the longest sequence has {table.width} tokens, and a pack {width}"
            )
        self.table, self.width = table, width
        self.name, self.mean_tokens = table.name, table.mean_tokens
        self.packs: list[list[int]] = []
        self.parts = []
        for part in table.parts:
            new = [part[chosen].tolist() for chosen in pack(table.lengths[part], width)]
            self.parts.append(len(self.packs) + np.arange(len(new)))
            self.packs += new
        share = table.lengths.sum() / (len(self.packs) * width)
        packs = f"{len(self.packs):,} packs of {width:,} tokens, {100 * share:.0f} % full"
        self.note = f"{table.note}, in {packs}"

    def __len__(self) -> int:
        return len(self.packs)

    @property
    def fingerprint(self) -> str:
        """A hash of what is learned from, in its order."""
        return self.table.fingerprint

    @property
    def longest(self) -> int:
        """Positions that the longest sequence takes: they begin anew in each."""
        return self.table.longest

    def take(self, items: Sequence[int] | np.ndarray) -> Experience:
        """The packs of items, each a row. A ``FILLER`` is as in ``SequenceTable.take``."""
        shape = (len(items), self.width)
        tokens = np.full(shape, self.table.pad_id, np.int32)
        weights = np.zeros(shape, np.float32)
        segments = np.zeros(shape, np.int32)
        for row, item in enumerate(items):
            start = 0
            for number, index in enumerate(self.packs[item] if item != FILLER else [], start=1):
                ids, weighs = self.table.sequence(index)
                at = slice(start, start + len(ids))
                tokens[row, at], weights[row, at], segments[row, at] = ids, weighs, number
                start += len(ids)
        mask = segments > 0
        mask[np.asarray(items) == FILLER, 0] = True
        return Experience(
            tokens=tokens,
            mask=mask,
            action_mask=weights > 0,
            data_weights=weights if self.table.is_weighted else None,
            segments=segments,
        )
