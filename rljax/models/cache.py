"""Keys and values of the tokens before: written at a column, and given room for more."""

import jax
import jax.numpy as jnp

from rljax.models.quantized import quantize
from rljax.types import ROWS, Cache, Quantized


def extend_cache(cache: Cache, columns: int, group_size: int) -> Cache:
    """A cache with ``columns`` more on the right, each row repeated ``group_size`` times."""

    def extend(x):
        room = [(0, 0)] * (x.ndim - 2) + [(0, columns), (0, 0)]
        return jnp.pad(jnp.repeat(x, group_size, axis=ROWS), room)

    return jax.tree.map(extend, cache)


def columns_from(column, x, count: int):
    """So many columns of x [B, S], from the same one on or from each row's own."""

    def cut(x, column):
        return jax.lax.dynamic_slice_in_dim(x, column, count, axis=-1)

    return jax.vmap(cut)(x, column) if jnp.ndim(column) else cut(x, column)


def write_cache(cache: Cache, k, v, layer, column) -> Cache:
    """A cache with the keys and values [B, K, Tq, h] of a layer, quantised if the cache is: from
    the same column on in all rows, or from each row's own [B]."""
    put = _put_each if jnp.ndim(column) else _put

    def write(old, new):
        if isinstance(old, tuple):
            return (*old[:layer], write(old[layer], new), *old[layer + 1 :])
        return jax.tree.map(
            write_array, old, quantize(new, (-1,)) if isinstance(old, Quantized) else new
        )

    def write_array(old, new):
        new = new.astype(old.dtype)
        if old.ndim == new.ndim:  # of this layer alone
            return put(old[None], new, 0, column)[0]
        return put(old, new, layer, column)

    return Cache(write(cache.keys, k), write(cache.values, v))


def _put(old, new, layer, column):
    return jax.lax.dynamic_update_slice(old, new[None], (layer, 0, 0, column, 0))


def _put_each(old, new, layer, column):
    """``_put`` at a column [B] of each row; in place, and each shard of the rows by itself."""
    index = jnp.stack([jnp.full_like(column, layer), column], axis=-1)
    places = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3),
        inserted_window_dims=(0,),
        scatter_dims_to_operand_dims=(0, 3),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    return jax.lax.scatter(old, index, new, places, unique_indices=True, mode="clip")
