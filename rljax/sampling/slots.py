"""Continuous batching within a compiled program: rows decode in slots, a chunk of tokens at a time,
at the smallest size that holds those that are alive.

The cache of a slot begins with its prompt and has no gaps. A chunk works on a copy of the slots
that are alive, as wide as the longest. What it draws stands behind that width, in the same column
for every row, and is moved to its place when the chunk is over. Between two chunks ended rows
leave, and others of the queue take their slots. So an ended row and an empty column cost no more
than what a chunk rounds up.

Rows stay on the shard of the mesh that they belong to: D shards of N slots, and of the B rows.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from rljax.models import extend_cache
from rljax.sampling.decode import cache_axes, draw, feed
from rljax.sharding import SAMPLING, lay, spread_rows
from rljax.types import COLUMNS, ROWS, Array, Cache, Model, Params

LEAST_CHUNK, MOST_CHUNK = 16, 64  # tokens
ENOUGH_FREE = 8  # while rows wait, a chunk ends when one in so many slots is free


class Queue(NamedTuple):
    """The rows to be drawn, and their prompts, prefilled: W columns."""

    keys: Key[Array, " B"]
    greedy: Bool[Array, " B"]
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


class Size(NamedTuple):
    """What a chunk is compiled for."""

    slots: int  # of each shard
    columns: int  # of the longest row before it


def chunk_tokens(max_tokens: int) -> int:
    """Tokens of a chunk, at most."""
    return min(max_tokens, max(LEAST_CHUNK, min(MOST_CHUNK, max_tokens // 8)))


def chunk_sizes(slots: int, width: int, max_tokens: int) -> list[Size]:
    """The cheapest first: all slots at each quarter of the budget, and fewer slots at fewer widths,
    where there is less to save."""
    if chunk_tokens(max_tokens) == max_tokens:
        return [Size(slots, width)]
    quarters = {1: (1, 2, 3, 4), 4: (2, 4), 16: (4,)}
    sizes = {
        Size(math.ceil(slots / part), width + math.ceil(max_tokens * quarter / 4))
        for part, several in quarters.items()
        for quarter in several
    }
    return sorted(sizes, key=lambda size: (size.slots * size.columns, size))


def draw_rows(
    model: Model,
    params: Params,
    queue: Queue,
    *,
    slots: int,
    shards: int,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    temperature: float,
    filter: Callable[[Array], Array],
) -> Slots:
    """Draws every row of the queue to its end, ``slots`` of each shard at a time."""
    rows = queue.greedy.shape[0] // shards
    width = queue.mask.shape[1]
    sizes = chunk_sizes(slots, width, max_tokens)
    chunk = functools.partial(
        _draw_chunk,
        model,
        params,
        queue,
        max_tokens=max_tokens,
        eos_ids=eos_ids,
        pad_id=pad_id,
        temperature=temperature,
        filter=filter,
    )
    chunks = [functools.partial(chunk, size=size) for size in sizes]

    def proceed(state: Slots):
        return state.alive.any() | (state.begun < rows).any()

    def go_on(state: Slots) -> Slots:
        if slots < rows:
            state = jax.lax.cond(_free(state, rows) > 0, refill, lambda state: state, state)
        alive = state.alive.reshape(shards, -1).sum(axis=1).max()
        columns = width + jnp.where(state.alive, state.drawn, 0).max()
        fits = jnp.array([(alive <= size.slots) & (columns <= size.columns) for size in sizes])
        return jax.lax.switch(jnp.argmax(fits), chunks, state)

    refill = functools.partial(_refill, queue)
    return jax.lax.while_loop(proceed, go_on, _fill(queue, slots, shards, max_tokens, pad_id))


def _fill(queue: Queue, slots: int, shards: int, max_tokens: int, pad_id: int) -> Slots:
    """The first rows of every shard in its slots."""
    (rows,), (prompts, _) = queue.greedy.shape, queue.mask.shape
    row = jnp.tile(jnp.arange(slots), shards)
    room = max_tokens + chunk_tokens(max_tokens)
    if slots * shards == rows:
        logits = jnp.repeat(queue.logits, rows // prompts, axis=0)
        cache = extend_cache(queue.cache, room, rows // prompts)
    else:
        prompt = row // (rows // prompts)
        logits = _take(queue.logits, prompt, shards)
        cache = jax.tree.map(lambda x: _take(x, prompt, shards, ROWS), queue.cache)
        cache = extend_cache(cache, room, 1)
    nothing = jnp.zeros((rows, max_tokens))
    return Slots(
        row=row,
        drawn=jnp.zeros_like(row),
        alive=jnp.ones(row.shape, bool),
        logits=spread_rows(logits),
        cache=_laid(cache),
        begun=jnp.full(shards, slots),
        tokens=spread_rows(jnp.full(nothing.shape, pad_id, jnp.int32)),
        logprobs=spread_rows(nothing),
        lengths=jnp.zeros(rows, jnp.int32),
    )


def _free(state: Slots, rows: int) -> Int[Array, ""]:
    """How many slots are free for rows that wait."""
    shards = state.begun.shape[0]
    free = (~state.alive).reshape(shards, -1).sum(axis=1)
    return jnp.minimum(free, rows - state.begun).sum()


def _refill(queue: Queue, state: Slots) -> Slots:
    """The next rows of every shard in the slots that are free."""
    shards, (prompts, width) = state.begun.shape[0], queue.mask.shape
    rows = queue.greedy.shape[0] // shards
    free = (~state.alive).reshape(shards, -1)
    following = (state.begun[:, None] + jnp.cumsum(free, axis=1) - 1).reshape(-1)
    new = free.reshape(-1) & (following < rows)
    row = jnp.where(new, following, state.row)
    prompt = row // (rows * shards // prompts)

    def begin(old, prefilled):
        first = jax.lax.slice_in_dim(old, 0, width, axis=old.ndim + COLUMNS)
        prefilled = _take(prefilled, prompt, shards, ROWS).astype(old.dtype)
        first = jnp.where(new[:, None, None, None], prefilled, first)
        return jax.lax.dynamic_update_slice_in_dim(old, first, 0, axis=old.ndim + COLUMNS)

    return state._replace(
        row=row,
        drawn=jnp.where(new, 0, state.drawn),
        alive=state.alive | new,
        logits=jnp.where(new[:, None], _take(queue.logits, prompt, shards), state.logits),
        cache=_laid(jax.tree.map(begin, state.cache, queue.cache)),
        begun=state.begun + new.reshape(shards, -1).sum(axis=1),
    )


class _Chunk(NamedTuple):
    """The carry of a chunk's loop; n of each shard's slots take part."""

    step: Int[Array, ""]
    tokens: Int[Array, "Dn C"]
    logprobs: Float[Array, "Dn C"]
    alive: Bool[Array, " Dn"]
    visible: Bool[Array, "Dn S"]
    logits: Float[Array, "Dn V"]
    cache: Cache


def _draw_chunk(
    model: Model,
    params: Params,
    queue: Queue,
    state: Slots,
    *,
    size: Size,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    temperature: float,
    filter: Callable[[Array], Array],
) -> Slots:
    """At most a chunk of tokens of every row that is alive, which are no more than the size has."""
    shards, width = state.begun.shape[0], queue.mask.shape[1]
    rows = queue.greedy.shape[0]
    total = state.alive.shape[0]
    eos, length = jnp.asarray(eos_ids), chunk_tokens(max_tokens)
    everyone = size.slots * shards == total
    alive_first = jnp.argsort(~state.alive.reshape(shards, -1), axis=1, stable=True)
    slot = alive_first[:, : size.slots].reshape(-1)

    def pick(x, axis=0):
        return x if everyone else _take(x, slot, shards, axis)

    row, drawn, alive = pick(state.row), pick(state.drawn), pick(state.alive)
    keys, greedy = _take(queue.keys, row, shards), _take(queue.greedy, row, shards)
    mask = _take(queue.mask, row // (rows // queue.mask.shape[0]), shards)
    visible = jnp.arange(width, size.columns) < width + drawn[:, None]
    room = [(0, 0), (0, length)]

    def cut(x):
        x = jax.lax.slice_in_dim(x, 0, size.columns, axis=x.ndim + COLUMNS)
        return jnp.pad(pick(x, ROWS), [(0, 0)] * (x.ndim - 2) + [(0, length), (0, 0)])

    start = _Chunk(
        step=jnp.int32(0),
        tokens=jnp.full((*row.shape, length), pad_id, jnp.int32),
        logprobs=jnp.zeros((*row.shape, length)),
        alive=alive,
        visible=jnp.pad(jnp.concatenate([mask, visible], axis=1), room),
        logits=pick(state.logits),
        cache=_laid(jax.tree.map(cut, state.cache)),
    )
    start = spread_rows(start._replace(step=None, cache=None))._replace(
        step=start.step, cache=start.cache
    )

    def proceed(chunk: _Chunk):
        going = (chunk.step < length) & chunk.alive.any()
        if everyone and total < rows:
            free = _free(state._replace(alive=chunk.alive), rows // shards)
            going &= free < max(1, total // ENOUGH_FREE)
        return going

    def step(chunk: _Chunk) -> _Chunk:
        column = size.columns + chunk.step
        token, logprob = draw(
            chunk.logits,
            jax.vmap(jax.random.fold_in)(keys, drawn + chunk.step),
            temperature=temperature,
            greedy=greedy,
            filter=filter,
        )
        token = jnp.where(chunk.alive, token, pad_id).astype(jnp.int32)

        def put(array, new, at):
            return jax.lax.dynamic_update_slice_in_dim(array, new[:, None], at, axis=1)

        visible = put(chunk.visible, chunk.alive, column)
        logits, cache = feed(model, params, token, visible, chunk.cache, column)
        over = jnp.isin(token, eos) | (drawn + chunk.step + 1 == max_tokens)
        return _Chunk(
            step=chunk.step + 1,
            tokens=put(chunk.tokens, token, chunk.step),
            logprobs=put(chunk.logprobs, jnp.where(chunk.alive, logprob, 0.0), chunk.step),
            alive=chunk.alive & ~over,
            visible=visible,
            logits=logits,
            cache=cache,
        )

    end = jax.lax.while_loop(proceed, step, start)
    fresh = jax.lax.slice_in_dim(end.visible, size.columns, None, axis=1)
    count = fresh.sum(axis=1)
    place = jnp.where(fresh, drawn[:, None] + jnp.arange(length), max_tokens)  # else: left out

    def keep(old, new):
        return new if everyone else _put(old, slot, new, shards)

    if everyone:
        place_in_cache = width + drawn
    else:  # what the others get, lies where a cache has only room
        position = jnp.argsort(alive_first, axis=1).reshape(-1)
        place_in_cache = jnp.where(position < size.slots, width + state.drawn, width + max_tokens)

    def move(old, new):
        new = jax.lax.slice_in_dim(new, size.columns, None, axis=new.ndim + COLUMNS)
        if not everyone:
            new = _take(new, position, shards, ROWS)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=COLUMNS)
        rows = old.ndim + ROWS
        return jax.vmap(put, in_axes=(rows, rows, 0), out_axes=rows)(old, new, place_in_cache)

    return state._replace(
        drawn=keep(state.drawn, drawn + count),
        alive=keep(state.alive, end.alive),
        logits=keep(state.logits, end.logits),
        cache=_laid(jax.tree.map(move, state.cache, end.cache)),
        tokens=_put(state.tokens, (row[:, None], place), end.tokens, shards),
        logprobs=_put(state.logprobs, (row[:, None], place), end.logprobs, shards),
        lengths=_put(state.lengths, row, drawn + count, shards),
    )


def _laid(cache: Cache) -> Cache:
    return jax.tree.map(lambda x: lay(x, cache_axes(x), SAMPLING), cache)


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


def _take(x: Array, index: Int[Array, " Dn"], shards: int, axis: int = 0) -> Array:
    """Entries of each shard along an axis, by their places in the shard."""
    take = functools.partial(jnp.take, axis=axis, mode="clip")
    return spread_rows(_by_shard(take, shards, axis)(x, index), axis % x.ndim)


def _put(x: Array, index, new: Array, shards: int) -> Array:
    """``x`` with new entries of each shard, by their places in the shard; none beyond its end."""

    def put(x, index, new):
        return x.at[index].set(new, mode="drop", unique_indices=False)

    return spread_rows(_by_shard(put, shards)(x, index, new))
