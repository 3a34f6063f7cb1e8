"""Keys and values of the tokens before: written at a column, and given room for more."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax.models.quantized import quantize
from rljax.types import COLUMNS, FEATURES, ROWS, Array, Cache, Quantized


def map_cache(function: Callable[..., Array], cache: Cache, *others: Cache) -> Cache:
    """``function(array, ..., axis=)`` of every array of caches, ``axis`` that of its columns."""

    def each(axis, *parts):
        return jax.tree.map(functools.partial(function, axis=axis), *parts)

    return jax.tree.map(each, COLUMNS, cache, *others)


def extend_cache(cache: Cache, columns: int, group_size: int) -> Cache:
    """A cache with ``columns`` more on the right, each row repeated ``group_size`` times."""

    def extend(x, axis):
        room = [(0, 0)] * x.ndim
        room[axis] = (0, columns)
        return jnp.pad(jnp.repeat(x, group_size, axis=ROWS), room)

    return map_cache(extend, cache)


def columns_from(column, x, count: int):
    """So many columns of x [B, S], from the same one on or from each row's own."""

    def cut(x, column):
        return jax.lax.dynamic_slice_in_dim(x, column, count, axis=-1)

    return jax.vmap(cut)(x, column) if jnp.ndim(column) else cut(x, column)


def write_cache(cache: Cache, k, v, layer, column) -> Cache:
    """A cache with the keys [B, K, h, Tq] and values [B, K, Tq, h] of a layer, quantised if the
    cache is: from the same column on in all rows, or from each row's own [B]."""
    put = _put_each if jnp.ndim(column) else _put
    apart = isinstance(cache.keys, tuple)
    old = Cache(cache.keys[layer], cache.values[layer]) if apart else cache
    new = Cache(k, v)
    if isinstance(old.keys, Quantized):
        new = jax.tree.map(lambda axis, x: quantize(x, (axis,)), FEATURES, new)

    def write(old, new, axis):
        new = new.astype(old.dtype)
        if apart:
            return put(old[None], new, 0, column, axis)[0]
        return put(old, new, layer, column, axis)

    written = map_cache(write, old, new)
    if not apart:
        return written

    def among(layers, one):
        return (*layers[:layer], one, *layers[layer + 1 :])

    return Cache(among(cache.keys, written.keys), among(cache.values, written.values))


def _put(old, new, layer, column, axis):
    start = [layer, 0, 0, 0, 0]
    start[axis] = column
    return jax.lax.dynamic_update_slice(old, new[None], start)


def _put_each(old, new, layer, column, axis):
    """``_put`` at a column [B] of each row; in place, and each shard of the rows by itself."""
    index = jnp.stack([jnp.full_like(column, layer), column], axis=-1)
    places = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3),
        inserted_window_dims=(0,),
        scatter_dims_to_operand_dims=(0, old.ndim + axis),
        operand_batching_dims=(1,),
        scatter_indices_batching_dims=(0,),
    )
    return jax.lax.scatter(old, index, new, places, unique_indices=True, mode="clip")
