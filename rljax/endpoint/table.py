"""The compiled half of the server: a table of rows that decode together, each by its own settings.

All rows write the same column, as the sampler's do. A prompt ends in the column before it, wherever
that is: positions are counted from the row's first visible column, so that a row may begin while
others are under way, and the whole table may be shifted.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rljax.models import extend_cache, map_cache
from rljax.sampling import filter_rows
from rljax.sampling.decode import cache_axes, draw, feed, prefill, settle
from rljax.sharding import SAMPLING, partition_spec
from rljax.types import Array, Cache, Model, Params

MOST_ALTERNATIVES = 20  # tokens that are told beside the one that was drawn
MOST_STEPS = 16  # of one call of ``decode``


class Table(NamedTuple):
    """R rows of S columns, on the devices."""

    visible: Array  # [R, S]
    logits: Array  # [R, V], of the next token
    cache: Cache


class RowSettings(NamedTuple):
    """Of each of R rows; arrays, so that no other values are another program."""

    seed: np.ndarray
    index: np.ndarray  # of the response among those with the seed
    drawn: np.ndarray  # tokens so far
    left: np.ndarray  # tokens that may still be drawn; 0 of a row that is free
    temperature: np.ndarray
    greedy: np.ndarray
    top_k: np.ndarray  # 0 is no limit
    top_p: np.ndarray
    min_p: np.ndarray
    alternatives: np.ndarray  # whether the most probable tokens are told

    @classmethod
    def free(cls, rows: int) -> "RowSettings":
        """Of rows that draw nothing."""
        types = (np.uint32, np.int32, np.int32, np.int32, np.float32, bool, np.int32)
        types = (*types, np.float32, np.float32, bool)
        made = cls(*(np.zeros(rows, dtype) for dtype in types))
        made.temperature[:] = made.top_p[:] = 1.0
        return made


class Drawn(NamedTuple):
    """What ``decode`` drew: N = MOST_STEPS, of which ``steps`` were taken."""

    steps: Array
    tokens: Array  # [N, R]
    logprobs: Array  # [N, R], of softmax(logits), whatever the temperature
    top_ids: Array  # [N, R, K], of the most probable tokens
    top_logprobs: Array


class Programs(NamedTuple):
    """Compiled functions; they give new tables for the ones that they are given."""

    settle: Callable[[Params], Params]
    empty: Callable[..., Table]  # (columns)
    widen: Callable[..., Table]  # (table, columns)
    shift: Callable[..., Table]  # (table, columns to the right)
    prefill: Callable[..., tuple]  # (params, tokens [1, W], mask) -> (logits, cache)
    place: Callable[..., Table]  # (table, logits, cache, mask, rows, column)
    decode: Callable[..., tuple[Table, Drawn]]  # (params, table, settings, column, steps)


def make_programs(
    model: Model, mesh: Mesh, *, vocabulary: int, rows: int, eos_ids: Sequence[int]
) -> Programs:
    """The programs for a table of ``rows`` rows and the logits of ``vocabulary`` tokens.

    Each gives the table where the others take it, so that none is compiled for other places.
    """
    empty = functools.partial(_empty, model, vocabulary, rows)
    with jax.set_mesh(mesh):
        places = _places(jax.eval_shape(lambda: empty(1)), mesh)
    return Programs(
        settle=jax.jit(functools.partial(settle, model)),
        empty=jax.jit(empty, static_argnums=0, out_shardings=places),
        widen=jax.jit(_widen, static_argnums=1, out_shardings=places),
        shift=jax.jit(_shift, donate_argnums=0, out_shardings=places),
        prefill=jax.jit(functools.partial(prefill, model)),
        place=jax.jit(_place, donate_argnums=0, out_shardings=places),
        decode=jax.jit(
            functools.partial(_decode, model, tuple(eos_ids)),
            donate_argnums=1,
            out_shardings=(places, None),
        ),
    )


def _places(table: Table, mesh: Mesh) -> Table:
    """Where the arrays of a table lie, however many columns it has."""

    def place(array, axes):
        return NamedSharding(mesh, partition_spec(axes, array.shape, mesh, SAMPLING))

    rows = ("rows", None)
    cache = jax.tree.map(lambda array: place(array, cache_axes(array)), table.cache)
    return Table(place(table.visible, rows), place(table.logits, rows), cache)


def _empty(model: Model, vocabulary: int, rows: int, columns: int) -> Table:
    cache = model.init_cache(rows, columns)
    return Table(jnp.zeros((rows, columns), bool), jnp.zeros((rows, vocabulary)), cache)


def _widen(table: Table, columns: int) -> Table:
    """With columns on the right, ``columns`` in all."""
    more = columns - table.visible.shape[1]
    visible = jnp.pad(table.visible, [(0, 0), (0, more)])
    return Table(visible, table.logits, extend_cache(table.cache, more, 1))


def _shift(table: Table, by) -> Table:
    """Every column ``by`` further to the right; those at the end, of which no row that draws may
    have any, come to stand at the beginning."""
    cache = map_cache(lambda x, axis: jnp.roll(x, by, axis), table.cache)
    return Table(jnp.roll(table.visible, by, axis=1), table.logits, cache)


def _place(table: Table, logits, cache: Cache, mask, rows, column) -> Table:
    """A prefilled prompt in every one of ``rows`` [R], so that its last token stands before
    ``column``."""
    width = mask.shape[1]
    start = column - width

    def put(old, new, axis):
        there = jax.lax.dynamic_slice_in_dim(old, start, width, axis)
        new = jnp.where(rows[:, None, None, None], new, there)
        return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis)

    own = jax.lax.dynamic_update_slice(jnp.zeros_like(table.visible[:1]), mask, (0, start))
    return Table(
        visible=jnp.where(rows[:, None], own, table.visible),
        logits=jnp.where(rows[:, None], logits, table.logits),
        cache=map_cache(put, table.cache, cache),
    )


def _decode(
    model: Model, eos_ids, params: Params, table: Table, settings: RowSettings, column, steps
) -> tuple[Table, Drawn]:
    """At most ``steps`` tokens of every row, the first at ``column``, until all have ended.

    Row i's token n is drawn with the key that ``sample`` draws it with, of ``key(seed)`` and a
    batch in which the row has this ``index``.
    """
    rows, vocabulary = table.logits.shape
    told = (MOST_STEPS, rows)
    most = (*told, min(MOST_ALTERNATIVES, vocabulary))
    nothing = Drawn(
        steps=jnp.int32(0),
        tokens=jnp.zeros(told, jnp.int32),
        logprobs=jnp.zeros(told),
        top_ids=jnp.zeros(most, jnp.int32),
        top_logprobs=jnp.zeros(most),
    )
    row_keys = jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(
        settings.seed, settings.index
    )
    limits = {"top_k": settings.top_k, "top_p": settings.top_p, "min_p": settings.min_p}
    eos = jnp.asarray(eos_ids)

    def proceed(carry):
        _, drawn, left = carry
        return (drawn.steps < steps) & (left > 0).any()

    def step(carry):
        table, drawn, left = carry
        alive = left > 0
        token, _ = draw(
            table.logits,
            jax.vmap(jax.random.fold_in)(row_keys, settings.drawn + drawn.steps),
            temperature=settings.temperature[:, None],
            greedy=settings.greedy,
            filter=functools.partial(filter_rows, **limits),
        )
        token = jnp.where(alive, token, 0).astype(jnp.int32)
        logp = jax.nn.log_softmax(table.logits)
        top_logprobs, top_ids = jax.lax.cond(
            (settings.alternatives & alive).any(),
            lambda: tuple(jax.lax.top_k(logp, most[-1])),
            lambda: (jnp.zeros(most[1:]), jnp.zeros(most[1:], jnp.int32)),
        )
        here = column + drawn.steps
        visible = jax.lax.dynamic_update_slice(table.visible, alive[:, None], (0, here))
        logits, cache = feed(model, params, token, visible, table.cache, here)
        logprob = jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]
        drawn = Drawn(
            steps=drawn.steps + 1,
            tokens=drawn.tokens.at[drawn.steps].set(token),
            logprobs=drawn.logprobs.at[drawn.steps].set(logprob),
            top_ids=drawn.top_ids.at[drawn.steps].set(top_ids),
            top_logprobs=drawn.top_logprobs.at[drawn.steps].set(top_logprobs),
        )
        left = jnp.where(jnp.isin(token, eos), 0, jnp.maximum(left - 1, 0))
        return Table(visible, logits, cache), drawn, left

    table, drawn, _ = jax.lax.while_loop(proceed, step, (table, nothing, settings.left))
    return table, drawn
