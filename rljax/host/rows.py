"""Rows of a batch that this process holds, and columns made of them.

A column may lie on the host too, as an array of NumPy, and is then held whole.
"""

import jax
import numpy as np
from jaxtyping import Bool

from rljax.types import Array


def held(column: Array) -> Bool[np.ndarray, " B"]:
    """The rows of a column that this process holds."""
    return _rows(column, first=False)


def held_first(column: Array) -> Bool[np.ndarray, " B"]:
    """The rows of a column that this process holds, and of all that hold them is the first to."""
    return _rows(column, first=True)


def local(column: Array) -> np.ndarray:
    """A column as far as this process holds it, 0 elsewhere."""
    if not isinstance(column, jax.Array):
        return np.asarray(column)
    local = np.zeros(column.shape, column.dtype)
    shards = {str(shard.index): shard for shard in column.addressable_shards}  # each part once
    for shard in shards.values():
        local[shard.index] = shard.data
    return local


def placed(column: np.ndarray, like: Array) -> Array:
    """A column laid out as another; of ``column`` only the rows that this process holds count."""
    if not isinstance(like, jax.Array):
        return column
    return jax.make_array_from_callback(column.shape, like.sharding, lambda rows: column[rows])


def _rows(column: Array, *, first: bool) -> Bool[np.ndarray, " B"]:
    if not isinstance(column, jax.Array):
        return np.ones(len(column), bool)
    rows = np.zeros(len(column), bool)
    for shard in column.addressable_shards:
        if shard.replica_id == 0 or not first:
            rows[shard.index[0]] = True
    return rows
