"""A chunk of decoding: some tokens of every row that is alive, at the smallest size for them.

It works on a copy of the slots that are alive, as wide as the longest. What it draws stands behind
that width, in the same column for every row, until it is moved to its place. So an ended row and an
empty column cost no more than what the sizes and a chunk round up.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from rljax.models import extend_cache, map_cache
from rljax.sampling.by_shard import take
from rljax.sampling.decode import Decoding, draw, feed, lay_cache
from rljax.sampling.lookup import Text, draw_ahead
from rljax.sampling.slots import Drawn, Order, Queue, Slots, free_slots
from rljax.sharding import spread_rows
from rljax.types import ROWS, Array, Cache, Model, Params

LEAST_CHUNK, MOST_CHUNK = 16, 64  # tokens
SHORT = 128  # tokens of a budget that is soon over: sizes for it take longer to compile
SIZES = ((4, 1), (1, 2), (1, 1))  # of chunks: one in so many slots, a part of the budget
ENOUGH_FREE = 8  # while rows wait, a chunk ends when one in so many slots is free


class Size(NamedTuple):
    """What a chunk is compiled for."""

    slots: int  # of each shard
    columns: int  # of the longest row before it


def chunk_tokens(max_tokens: int, *, queued: bool, stacked: bool) -> int:
    """Tokens of a chunk, at most; all there are, where smaller chunks would cost more than they
    save.

    Args:
      queued: rows wait for slots.
      stacked: the caches of many layers are one array: of a model too large to have them twice.
    """
    if not queued and (stacked or max_tokens <= SHORT):
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


def cached_columns(
    slots: int, rows: int, width: int, max_tokens: int, *, guesses: int, stacked: bool
) -> int:
    """Columns of the caches of each slot, its copy in the largest chunk included."""
    length = chunk_tokens(max_tokens, queued=slots < rows, stacked=stacked)
    fresh = length + guesses
    largest = chunk_sizes(slots, width, max_tokens, length=length)[-1].columns + fresh
    if length < max_tokens:
        return largest + width + max_tokens + fresh
    return largest if slots == rows else largest + width


def draw_chunk(
    model: Model,
    params: Params,
    queue: Queue,
    size: Size,
    state: Slots,
    order: Order,
    *,
    length: int,
    guesses: int,
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
    fresh = length + guesses
    slot = order.slot.reshape(shards, -1)[:, : size.slots].reshape(-1)
    eos = jnp.asarray(eos_ids)

    def pick(x, axis=0):
        return x if everyone else take(x, slot, shards, axis)

    row, drawn, alive = pick(state.row), pick(state.drawn), pick(state.alive)
    keys, greedy = take(queue.keys, row, shards), take(queue.greedy, row, shards)
    asked = row // (rows // prompts)
    response = jnp.arange(width, size.columns) < width + drawn[:, None]
    visible = jnp.concatenate([take(queue.mask, asked, shards), response], axis=1)

    def cut(x, axis):
        return pick(jax.lax.slice_in_dim(x, 0, size.columns, axis=axis), ROWS)

    nothing = spread_rows(jnp.zeros((*row.shape, fresh)))
    start = Drawn(
        count=jnp.zeros_like(drawn),
        tokens=jnp.full_like(nothing, pad_id, jnp.int32),
        logprobs=nothing,
        alive=alive,
        logits=pick(state.logits),
        cache=lay_cache(extend_cache(map_cache(cut, state.cache), fresh, 1)),
    )

    def choose(logits, number):
        token, logprob = draw(
            logits,
            jax.vmap(jax.random.fold_in)(keys, drawn + number),
            temperature=temperature,
            greedy=greedy,
            filter=filter,
        )
        return token.astype(jnp.int32), logprob

    def over(token, number):
        return jnp.isin(token, eos) | (drawn + number + 1 == max_tokens)

    def proceed(step, alive):
        going = (step < length) & alive.any()
        if everyone and total < rows and length < max_tokens:
            free = free_slots(state._replace(alive=alive), rows // shards)
            going &= free < max(1, total // ENOUGH_FREE)
        return going

    decoding = Decoding(choose, over, proceed)
    if guesses:
        said = [take(queue.tokens, asked, shards), take(state.tokens, row, shards)]
        text = Text(spread_rows(jnp.concatenate(said, axis=1)), width + drawn)
        end = draw_ahead(
            model, params, start, text, visible, decoding, guesses=guesses, shards=shards
        )
    else:
        end = _draw_singly(model, params, start, visible, decoding, pad_id)

    behind = functools.partial(jax.lax.slice_in_dim, start_index=size.columns, limit_index=None)
    end = end._replace(cache=map_cache(behind, end.cache))
    if everyone:
        return end
    took_part = order.place < size.slots

    def back(x, axis=0):
        return take(x, order.place, shards, axis)

    everything = jax.tree.map(back, end._replace(cache=None))
    return everything._replace(
        count=jnp.where(took_part, everything.count, 0),
        alive=took_part & everything.alive,
        cache=jax.tree.map(lambda x: back(x, ROWS), end.cache),
    )


class _Chunk(NamedTuple):
    """The carry of a loop that draws token by token; n of each shard's slots take part."""

    step: Int[Array, ""]
    tokens: Int[Array, "Dn C"]
    logprobs: Float[Array, "Dn C"]
    alive: Bool[Array, " Dn"]
    visible: Bool[Array, "Dn S"]
    logits: Float[Array, "Dn V"]
    cache: Cache


def _draw_singly(
    model: Model,
    params: Params,
    start: Drawn,
    visible: Bool[Array, "Dn S"],
    decoding: Decoding,
    pad_id: int,
) -> Drawn:
    """Draws a token of every row at a time, in the same column."""
    columns = visible.shape[1]
    first = _Chunk(
        step=jnp.int32(0),
        tokens=start.tokens,
        logprobs=start.logprobs,
        alive=start.alive,
        visible=spread_rows(jnp.pad(visible, [(0, 0), (0, start.tokens.shape[1])])),
        logits=start.logits,
        cache=start.cache,
    )

    def step(chunk: _Chunk) -> _Chunk:
        column = columns + chunk.step
        token, logprob = decoding.choose(chunk.logits, chunk.step)
        token = jnp.where(chunk.alive, token, pad_id)

        def put(array, new, at):
            return jax.lax.dynamic_update_slice_in_dim(array, new[:, None], at, axis=1)

        visible = put(chunk.visible, chunk.alive, column)
        logits, cache = feed(model, params, token, visible, chunk.cache, column)
        return _Chunk(
            step=chunk.step + 1,
            tokens=put(chunk.tokens, token, chunk.step),
            logprobs=put(chunk.logprobs, logprob, chunk.step),
            alive=chunk.alive & ~decoding.over(token, chunk.step),
            visible=visible,
            logits=logits,
            cache=cache,
        )

    end = jax.lax.while_loop(lambda chunk: decoding.proceed(chunk.step, chunk.alive), step, first)
    count = jax.lax.slice_in_dim(end.visible, columns, None, axis=1).sum(axis=1)
    return Drawn(count, end.tokens, end.logprobs, end.alive, end.logits, end.cache)
