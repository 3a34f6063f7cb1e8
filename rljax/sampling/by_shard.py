"""Looking up and replacing rows within each shard of the mesh, so that none moves to another."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Int

from rljax.sharding import spread_rows
from rljax.types import Array


def _by_shard(f: Callable, shards: int, axis: int = 0) -> Callable:
    """``f(x, *others)`` of each shard's part alone: of x and of the result along ``axis``, of the
    others along their first."""

    def split(x, axis):
        axis %= x.ndim
        return x.reshape(*x.shape[:axis], shards, -1, *x.shape[axis + 1 :])

    def whole(x, *others):
        if shards == 1:
            return f(x, *others)
        at = axis % x.ndim
        others = jax.tree.map(lambda other: split(other, 0), others)
        out = jax.vmap(f, in_axes=(at, *(0 for _ in others)), out_axes=at)(split(x, at), *others)
        return out.reshape(*out.shape[:at], -1, *out.shape[at + 2 :])

    return whole


def take(x: Array, index: Int[Array, " Dn"], shards: int, axis: int = 0) -> Array:
    """Entries of each shard along an axis, by their places in the shard."""
    look_up = functools.partial(jnp.take, axis=axis, mode="clip")
    return spread_rows(_by_shard(look_up, shards, axis)(x, index), axis % x.ndim)


def put_at(x: Array, index, new: Array, shards: int) -> Array:
    """``x`` with new entries of each shard, by their places in the shard; none beyond its end."""

    def put(x, index, new):
        return x.at[index].set(new, mode="drop")

    return spread_rows(_by_shard(put, shards)(x, index, new))
