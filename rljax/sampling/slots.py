"""The slots that rows are drawn in, and the queue that waits for them.

The cache of a slot begins with its row's prompt and has no gaps. When a row has ended, another of
the queue takes its slot. Rows stay on the shard of the mesh that they belong to: D shards of N
slots, and of the B rows.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from rljax.models import extend_cache, map_cache
from rljax.sampling.by_shard import put_at, take
from rljax.sampling.decode import lay_cache
from rljax.sharding import spread_rows
from rljax.types import ROWS, Array, Cache


class Queue(NamedTuple):
    """The rows to be drawn, and their prompts, prefilled: W columns."""

    keys: Key[Array, " B"]
    greedy: Bool[Array, " B"]
    tokens: Int[Array, "P W"]
    mask: Bool[Array, "P W"]
    logits: Float[Array, "P V"]
    cache: Cache


class Slots(NamedTuple):
    """What is in the slots, and what has been drawn of all rows: R tokens at most."""

    row: Int[Array, " DN"]  # of the shard's; it stays when the row has ended and none follows
    drawn: Int[Array, " DN"]  # tokens of the row so far
    alive: Bool[Array, " DN"]
    logits: Float[Array, "DN V"]  # of the next token
    cache: Cache
    begun: Int[Array, " D"]  # rows that have had a slot
    tokens: Int[Array, "B R"]
    logprobs: Float[Array, "B R"]
    lengths: Int[Array, " B"]


def fill(queue: Queue, slots: int, shards: int, room: int, max_tokens: int, pad_id: int) -> Slots:
    """The first rows of every shard in its slots, with ``room`` for columns behind the prompts."""
    (rows,), (prompts, _) = queue.greedy.shape, queue.mask.shape
    row = jnp.tile(jnp.arange(slots), shards)
    if slots * shards == rows:
        logits = jnp.repeat(queue.logits, rows // prompts, axis=0)
        cache = extend_cache(queue.cache, room, rows // prompts)
    else:
        prompt = row // (rows // prompts)
        logits = take(queue.logits, prompt, shards)
        cache = jax.tree.map(lambda x: take(x, prompt, shards, ROWS), queue.cache)
        cache = extend_cache(cache, room, 1)
    nothing = jnp.zeros((rows, max_tokens))
    return Slots(
        row=row,
        drawn=jnp.zeros_like(row),
        alive=jnp.ones(row.shape, bool),
        logits=spread_rows(logits),
        cache=lay_cache(cache),
        begun=jnp.full(shards, slots),
        tokens=spread_rows(jnp.full(nothing.shape, pad_id, jnp.int32)),
        logprobs=spread_rows(nothing),
        lengths=jnp.zeros(rows, jnp.int32),
    )


def free_slots(state: Slots, rows: int) -> Int[Array, ""]:
    """How many slots are free for rows that wait."""
    shards = state.begun.shape[0]
    free = (~state.alive).reshape(shards, -1).sum(axis=1)
    return jnp.minimum(free, rows - state.begun).sum()


def refill(queue: Queue, state: Slots) -> Slots:
    """The next rows of every shard in the slots that are free."""
    shards, (prompts, width) = state.begun.shape[0], queue.mask.shape
    rows = queue.greedy.shape[0] // shards
    free = (~state.alive).reshape(shards, -1)
    following = (state.begun[:, None] + jnp.cumsum(free, axis=1) - 1).reshape(-1)
    new = free.reshape(-1) & (following < rows)
    row = jnp.where(new, following, state.row)
    prompt = row // (rows * shards // prompts)

    def begin(old, prefilled, axis):
        first = jax.lax.slice_in_dim(old, 0, width, axis=axis)
        prefilled = take(prefilled, prompt, shards, ROWS).astype(old.dtype)
        first = jnp.where(new[:, None, None, None], prefilled, first)
        return jax.lax.dynamic_update_slice_in_dim(old, first, 0, axis=axis)

    return state._replace(
        row=row,
        drawn=jnp.where(new, 0, state.drawn),
        alive=state.alive | new,
        logits=jnp.where(new[:, None], take(queue.logits, prompt, shards), state.logits),
        cache=lay_cache(map_cache(begin, state.cache, queue.cache)),
        begun=state.begun + new.reshape(shards, -1).sum(axis=1),
    )


class Order(NamedTuple):
    """The slots of each shard, those that are alive before the others."""

    slot: Int[Array, " DN"]
    place: Int[Array, " DN"]  # of each slot in that order


def alive_first(alive: Bool[Array, " DN"], shards: int) -> Order:
    """The order of the slots in which a chunk takes the first few."""
    alive = alive.reshape(shards, -1)
    behind = alive.sum(axis=1, keepdims=True) + jnp.cumsum(~alive, axis=1) - 1
    place = jnp.where(alive, jnp.cumsum(alive, axis=1) - 1, behind).reshape(-1)
    numbers = jnp.tile(jnp.arange(alive.shape[1]), shards)
    return Order(put_at(numbers, place, numbers, shards), place)


class Drawn(NamedTuple):
    """What a chunk drew in each slot, C tokens at most."""

    count: Int[Array, " DN"]
    tokens: Int[Array, "DN C"]
    logprobs: Float[Array, "DN C"]
    alive: Bool[Array, " DN"]
    logits: Float[Array, "DN V"]
    cache: Cache  # of its columns alone, once it has ended


def moved(state: Slots, chunk: Drawn, width: int, max_tokens: int, *, last: bool) -> Slots:
    """With what a chunk drew in its place, in the rows and in the caches of the slots, unless it is
    the last chunk of all its rows."""
    shards, number = state.begun.shape[0], jnp.arange(chunk.tokens.shape[1])
    drawn = state.drawn + chunk.count
    place = state.drawn[:, None] + number
    place = jnp.where(number < chunk.count[:, None], place, max_tokens)  # else: nowhere
    # Of a slot without any, what the chunk left goes to where a cache has only room.
    column = width + jnp.where(chunk.count > 0, state.drawn, max_tokens)

    def move(old, new, axis):
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis)
        rows = old.ndim + ROWS
        return jax.vmap(put, in_axes=(rows, rows, 0), out_axes=rows)(old, new, column)

    cache = state.cache
    if not last:
        cache = lay_cache(map_cache(move, cache, chunk.cache))
    return state._replace(
        drawn=drawn,
        alive=chunk.alive,
        logits=chunk.logits,
        cache=cache,
        tokens=put_at(state.tokens, (state.row[:, None], place), chunk.tokens, shards),
        logprobs=put_at(state.logprobs, (state.row[:, None], place), chunk.logprobs, shards),
        lengths=put_at(state.lengths, state.row, drawn, shards),
    )
