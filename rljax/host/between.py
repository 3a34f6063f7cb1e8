"""What the host does to a rollout between the two compiled halves of a step."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import PyTree

from rljax.types import Rollout


class Between(NamedTuple):
    """Columns that the host adds to a rollout's extras."""

    columns: Mapping[str, jax.ShapeDtypeStruct]  # of one row, by name
    add: Callable[[Rollout], Rollout]

    def abstract(self, drawn: PyTree, sharding: Sharding | None = None) -> PyTree:
        """What ``add`` makes of a rollout, or of given rows if it adds nothing, as shapes."""

        def describe(shape, dtype):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        rows = drawn.tokens.shape[0]
        drawn = jax.tree.map(lambda x: describe(x.shape, x.dtype), drawn)
        if not self.columns:
            return drawn
        added = {
            name: describe((rows, *row.shape), row.dtype) for name, row in self.columns.items()
        }
        return drawn.replace(extras=drawn.extras | added)


NOTHING = Between({}, lambda rollout: rollout)


def in_turn(*parts: Between) -> Between:
    """One after another."""
    columns = {name: row for part in parts for name, row in part.columns.items()}

    def add(rollout: Rollout) -> Rollout:
        for part in parts:
            rollout = part.add(rollout)
        return rollout

    return Between(columns, add)


def row_of(dtype, *shape: int) -> jax.ShapeDtypeStruct:
    """The description of one row of a column."""
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))
