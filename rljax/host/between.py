"""What the host does to a rollout between the two compiled halves of a step."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from rljax.sharding import rollout_shardings
from rljax.types import Rollout


class Between(NamedTuple):
    """Columns that the host adds to a rollout's extras.

    ``add`` takes the parts of a step's rollout as they come, so that a part may be drawn while the
    host is about the one before it.
    """

    columns: Mapping[str, jax.ShapeDtypeStruct]  # of one row, by name
    add: Callable[[Iterable[Rollout]], Iterable[Rollout]]

    def abstract(self, drawn: PyTree, mesh: Mesh | None = None) -> PyTree:
        """What ``add`` makes of a rollout, or of given rows if it adds nothing, as shapes; laid out
        over the mesh, if there is one."""
        if self.columns:
            rows = drawn.tokens.shape[0]
            added = {
                name: jax.ShapeDtypeStruct((rows, *row.shape), row.dtype)
                for name, row in self.columns.items()
            }
            drawn = drawn.replace(extras=drawn.extras | added)
        if mesh is None:
            return drawn
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            drawn,
            rollout_shardings(drawn, mesh),
        )


NOTHING = Between({}, lambda rollouts: rollouts)


def in_turn(*parts: Between) -> Between:
    """One after another."""
    columns = {name: row for part in parts for name, row in part.columns.items()}

    def add(rollouts: Iterable[Rollout]) -> Iterable[Rollout]:
        for part in parts:
            rollouts = part.add(rollouts)
        return rollouts

    return Between(columns, add)


def row_of(dtype, *shape: int) -> jax.ShapeDtypeStruct:
    """The description of one row of a column."""
    return jax.ShapeDtypeStruct(shape, np.dtype(dtype))
