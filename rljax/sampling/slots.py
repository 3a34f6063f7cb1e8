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
SIZES = ((4, 1), (1, 2), (1, 1))  # of chunks: one in so many slots, a part of the budget
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


def chunk_tokens(max_tokens: int, *, queued: bool, stacked: bool) -> int:
    """Tokens of a chunk, at most; all there are, if that takes least.

    Args:
      queued: rows wait for slots.
      stacked: the caches of many layers are one array: a model too large to have them twice for
        the sake of smaller chunks alone.
    """
    if stacked and not queued:
        return max_tokens
    return min(max_tokens, max(LEAST_CHUNK, min(MOST_CHUNK, max_tokens // 8)))


def chunk_sizes(slots: int, width: int, max_tokens: int, *, length: int) -> list[Size]:
    """Of chunks of ``length`` tokens, the cheapest first. Each is compiled, so that they are
    few."""
    if length == max_tokens:
        return [Size(slots, width)]
    sizes = {
        Size(math.ceil(slots / few), width + math.ceil(max_tokens / short)) for few, short in SIZES
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
    width, stacked = queue.mask.shape[1], not isinstance(queue.cache.keys, tuple)
    length = chunk_tokens(max_tokens, queued=slots < rows, stacked=stacked)
    sizes = chunk_sizes(slots, width, max_tokens, length=length)
    chunk = functools.partial(
        _draw_chunk,
        model,
        params,
        queue,
        length=length,
        max_tokens=max_tokens,
        eos_ids=eos_ids,
        pad_id=pad_id,
        temperature=temperature,
        filter=filter,
    )
    chunks = [functools.partial(chunk, size) for size in sizes]

    def proceed(state: Slots):
        return state.alive.any() | (state.begun < rows).any()

    def go_on(state: Slots) -> Slots:
        if slots < rows:
            state = jax.lax.cond(_free(state, rows) > 0, refill, lambda state: state, state)
        alive = state.alive.reshape(shards, -1).sum(axis=1).max()
        columns = width + jnp.where(state.alive, state.drawn, 0).max()
        fits = jnp.array([(alive <= size.slots) & (columns <= size.columns) for size in sizes])
        drawn = jax.lax.switch(jnp.argmax(fits), chunks, state, _alive_first(state.alive, shards))
        return _moved(state, drawn, width, max_tokens)

    refill = functools.partial(_refill, queue)
    room = 0 if length == max_tokens else max_tokens + length
    start = _fill(queue, slots, shards, room, max_tokens, pad_id)
    if slots == rows and length == max_tokens:
        return go_on(start)
    return jax.lax.while_loop(proceed, go_on, start)


def _fill(queue: Queue, slots: int, shards: int, room: int, max_tokens: int, pad_id: int) -> Slots:
    """The first rows of every shard in its slots, with ``room`` for columns behind the prompts."""
    (rows,), (prompts, _) = queue.greedy.shape, queue.mask.shape
    row = jnp.tile(jnp.arange(slots), shards)
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


class Order(NamedTuple):
    """The slots of each shard, those that are alive before the others."""

    slot: Int[Array, " DN"]
    place: Int[Array, " DN"]  # of each slot in that order


def cached_columns(slots: int, rows: int, width: int, max_tokens: int, *, stacked: bool) -> int:
    """Columns of the caches of each slot, its copy in the largest chunk included."""
    length = chunk_tokens(max_tokens, queued=slots < rows, stacked=stacked)
    largest = chunk_sizes(slots, width, max_tokens, length=length)[-1].columns + length
    if length < max_tokens:
        return largest + width + max_tokens + length
    return largest if slots == rows else largest + width


def _alive_first(alive: Bool[Array, " DN"], shards: int) -> Order:
    alive = alive.reshape(shards, -1)
    behind = alive.sum(axis=1, keepdims=True) + jnp.cumsum(~alive, axis=1) - 1
    place = jnp.where(alive, jnp.cumsum(alive, axis=1) - 1, behind).reshape(-1)
    numbers = jnp.tile(jnp.arange(alive.shape[1]), shards)
    return Order(_put(numbers, place, numbers, shards), place)


class Drawn(NamedTuple):
    """What a chunk drew in each slot, C tokens at most."""

    count: Int[Array, " DN"]
    tokens: Int[Array, "DN C"]
    logprobs: Float[Array, "DN C"]
    alive: Bool[Array, " DN"]
    logits: Float[Array, "DN V"]
    cache: Cache  # of its columns alone


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
    size: Size,
    state: Slots,
    order: Order,
    *,
    length: int,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    temperature: float,
    filter: Callable[[Array], Array],
) -> Drawn:
    """At most a chunk of tokens of every row that is alive, which are no more than the size has."""
    shards, (prompts, width) = state.begun.shape[0], queue.mask.shape
    rows, total = queue.greedy.shape[0], state.alive.shape[0]
    everyone = size.slots * shards == total
    slot = order.slot.reshape(shards, -1)[:, : size.slots].reshape(-1)
    eos = jnp.asarray(eos_ids)

    def pick(x, axis=0):
        return x if everyone else _take(x, slot, shards, axis)

    row, drawn, alive = pick(state.row), pick(state.drawn), pick(state.alive)
    keys, greedy = _take(queue.keys, row, shards), _take(queue.greedy, row, shards)
    prompt = _take(queue.mask, row // (rows // prompts), shards)
    response = jnp.arange(width, size.columns) < width + drawn[:, None]
    visible = jnp.concatenate([prompt, response], axis=1)

    def cut(x):
        x = jax.lax.slice_in_dim(x, 0, size.columns, axis=x.ndim + COLUMNS)
        return jnp.pad(pick(x, ROWS), [(0, 0)] * (x.ndim - 2) + [(0, length), (0, 0)])

    nothing = spread_rows(jnp.zeros((*row.shape, length)))
    start = _Chunk(
        step=jnp.int32(0),
        tokens=jnp.full_like(nothing, pad_id, jnp.int32),
        logprobs=nothing,
        alive=alive,
        visible=spread_rows(jnp.pad(visible, [(0, 0), (0, length)])),
        logits=pick(state.logits),
        cache=_laid(jax.tree.map(cut, state.cache)),
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
            logprobs=put(chunk.logprobs, logprob, chunk.step),
            alive=chunk.alive & ~over,
            visible=visible,
            logits=logits,
            cache=cache,
        )

    end = jax.lax.while_loop(proceed, step, start)
    count = jax.lax.slice_in_dim(end.visible, size.columns, None, axis=1).sum(axis=1)

    def fresh(x):
        return jax.lax.slice_in_dim(x, size.columns, None, axis=x.ndim + COLUMNS)

    cache = jax.tree.map(fresh, end.cache)
    drawn = Drawn(count, end.tokens, end.logprobs, end.alive, end.logits, cache)
    if everyone:
        return drawn
    took_part = order.place < size.slots

    def back(x, axis=0):
        return _take(x, order.place, shards, axis)

    everything = jax.tree.map(back, drawn._replace(cache=None))
    return everything._replace(
        count=jnp.where(took_part, everything.count, 0),
        alive=took_part & everything.alive,
        cache=jax.tree.map(lambda x: back(x, ROWS), cache),
    )


def _moved(state: Slots, chunk: Drawn, width: int, max_tokens: int) -> Slots:
    """With what a chunk drew in its place, in the rows and in the caches of the slots."""
    shards, number = state.begun.shape[0], jnp.arange(chunk.tokens.shape[1])
    drawn = state.drawn + chunk.count
    place = state.drawn[:, None] + number
    place = jnp.where(number < chunk.count[:, None], place, max_tokens)  # else: nowhere
    # Of a slot without any, what the chunk left goes to where a cache has only room.
    column = width + jnp.where(chunk.count > 0, state.drawn, max_tokens)

    def move(old, new):
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=COLUMNS)
        rows = old.ndim + ROWS
        return jax.vmap(put, in_axes=(rows, rows, 0), out_axes=rows)(old, new, column)

    cache = state.cache
    if number.size < max_tokens:  # else no row goes on
        cache = _laid(jax.tree.map(move, cache, chunk.cache))
    return state._replace(
        drawn=drawn,
        alive=chunk.alive,
        logits=chunk.logits,
        cache=cache,
        tokens=_put(state.tokens, (state.row[:, None], place), chunk.tokens, shards),
        logprobs=_put(state.logprobs, (state.row[:, None], place), chunk.logprobs, shards),
        lengths=_put(state.lengths, state.row, drawn, shards),
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
        return x.at[index].set(new, mode="drop")

    return spread_rows(_by_shard(put, shards)(x, index, new))
