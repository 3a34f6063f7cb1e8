"""Rows in lots of like length, so that the networks compute little padding.

A lot is computed at the narrowest of a few widths that holds its rows, whose first real tokens are
moved into the first column. Each width is compiled, once; which one is taken is decided on the
devices. With a single bucket the rows stay in their order and columns, and all are computed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from rljax.sharding import column_shards, split_rows, spread_rows

TILE = 8  # columns: a width of fewer would be filled up to them

MapRows = Callable[..., Array]  # ``map_rows``, perhaps with keywords bound


class Lots(NamedTuple):
    """Rows, longest first: K lots of B / K rows."""

    rows: PyTree  # arrays [K, B / K, T] and [K, B / K]
    width: Int[Array, " K"]  # index of the narrowest of the ``widths`` that holds all tokens
    order: Int[Array, " B"]  # which of the rows each is
    first: Int[Array, " B"]  # the column that the first real token of each was moved from


def widths(columns: int, buckets: int) -> tuple[int, ...]:
    """Up to ``buckets`` widths of rows of so many ``columns``, in equal steps that divide over the
    mesh in context; the last is the whole.

    >>> widths(544, 4), widths(80, 4), widths(80, 1)
    ((136, 272, 408, 544), (24, 40, 64, 80), (80,))
    """
    tile = TILE * column_shards()
    steps = (-(-columns * step // (buckets * tile)) * tile for step in range(1, buckets + 1))
    return tuple(sorted({min(width, columns) for width in steps}))


def make_lots(
    rows: PyTree, mask: Bool[Array, "B T"], *, parts: int, buckets: int, together: int = 1
) -> Lots:
    """Splits arrays of rows, [B, T] and [B], into ``parts`` lots by how many columns the tokens of
    ``mask`` take; ``together`` adjacent rows stay so."""
    size, columns = mask.shape
    if buckets == 1:
        nowhere = jnp.zeros(size, jnp.int32)
        return Lots(split_rows(rows, parts), nowhere[:parts], jnp.arange(size), nowhere)
    first = jnp.argmax(mask, axis=1)
    taken = jnp.max(jnp.where(mask, jnp.arange(1, columns + 1), 0), axis=1) - first
    longest = taken.reshape(-1, together).max(axis=1)
    order = joined(jnp.argsort(-longest), together)
    first = first[order]
    moved = _taken_from(rows, order, first, columns)
    longest = taken[order].reshape(parts, -1).max(axis=1)
    width = jnp.searchsorted(jnp.asarray(widths(columns, buckets)), longest)
    return Lots(split_rows(moved, parts), width, order, first)


def at_width(
    f: Callable[[PyTree], PyTree], rows: PyTree, width: Int[Array, ""], columns: int, buckets: int
) -> PyTree:
    """``f`` of the rows of a lot, cut to its width: one of as many compiled branches as there are
    ``widths``. What ``f`` returns must not depend on the width in shape."""

    def branch(width: int):
        return lambda rows: f(jax.tree.map(lambda x: x[:, :width] if x.ndim > 1 else x, rows))

    return jax.lax.switch(width, [branch(w) for w in widths(columns, buckets)], rows)


def map_rows(
    f: Callable[[Array, Array], Array],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    parts: int = 1,
    buckets: int = 1,
) -> Array:
    """``f(tokens, mask)``, [B, T] or [B], computed in ``parts`` lots of the rows. Columns that were
    not computed are 0."""
    columns = mask.shape[1]
    if parts == buckets == 1:
        return f(tokens, mask)
    lots = make_lots((tokens, mask), mask, parts=parts, buckets=buckets)

    def of_width(rows) -> Array:
        out = f(*rows)
        room = [(0, 0), (0, columns - out.shape[1])] if out.ndim > 1 else [(0, 0)]
        return jnp.pad(out, room)

    def of_lot(lot) -> Array:
        return at_width(of_width, *lot, columns, buckets)

    out = jax.lax.map(of_lot, (lots.rows, lots.width))
    out = spread_rows(out.reshape(-1, *out.shape[2:]))
    if buckets == 1:
        return out
    back = jnp.argsort(lots.order)
    return spread_rows(_taken_from(out, back, -lots.first[back], columns))


def joined(items: Int[Array, " I"], together: int) -> Int[Array, " B"]:
    """The rows of each item in turn."""
    if together == 1:
        return items
    return (items[:, None] * together + jnp.arange(together)).reshape(-1)


def _taken_from(
    rows: PyTree, order: Int[Array, " B"], first: Int[Array, " B"], columns: int
) -> PyTree:
    """The rows in an ``order``, the columns of each from its ``first`` on, and round to it."""
    at = (first[:, None] + jnp.arange(columns)) % columns
    return jax.tree.map(lambda x: x[order[:, None], at] if x.ndim > 1 else x[order], rows)
