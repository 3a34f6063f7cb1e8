"""Held-out rows, and the functions that tell how a state does on them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rljax.data import FILLER, PromptTable, SequenceTable
from rljax.host.between import Between
from rljax.train.collect import Draw, Judged
from rljax.train.given import Measure
from rljax.types import Prompts, Rollout, TrainState


class Answering(NamedTuple):
    """Held-out prompts, and the functions that answer and judge them."""

    table: PromptTable
    prompts: int  # of the table, the first ones
    at_once: int  # a multiple of the mesh's row shards
    samples: int  # to a prompt, beside the greedy response
    draw: Draw
    between: Between
    judge: Callable[[TrainState, Rollout], Judged]
    shaped: bool  # shaping tells of a response by itself, whatever its group

    def chunks(self) -> list[Prompts]:
        """The prompts, ``at_once`` of them each; the last one is filled up with the first."""
        at = np.arange(-(-self.prompts // self.at_once) * self.at_once)
        filled = np.where(at < self.prompts, at, 0)
        return [self.table.take(part) for part in filled.reshape(-1, self.at_once)]


class Measuring(NamedTuple):
    """Held-out rows, and the function that measures their loss."""

    table: SequenceTable
    at_once: int  # items: rows or pairs
    measure: Measure

    def items(self) -> list[np.ndarray]:
        """The items of each batch, the last one filled up."""
        count = len(self.table)
        at = np.arange(-(-count // self.at_once) * self.at_once)
        return list(np.where(at < count, at, FILLER).reshape(-1, self.at_once))
