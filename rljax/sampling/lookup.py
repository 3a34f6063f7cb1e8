"""Prompt lookup: a row's own text says which tokens may follow, and one pass checks them all.

A guess is kept where the row draws that very token from the logits before it, with the key that the
token would be drawn with anyway. So the responses are those of drawing token by token, and a right
guess costs no pass of its own. What a wrong one left in the cache is written over by the next pass.

Source: Leviathan et al. 2023, arXiv 2211.17192, for checking guesses in one pass; Saxena 2023,
prompt lookup decoding, for guessing them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from rljax.sampling.by_shard import put_at
from rljax.sampling.decode import Decoding
from rljax.sampling.slots import Drawn
from rljax.types import Array, Model, Params

MOST_ALIKE = 2  # last tokens that are looked up


class Text(NamedTuple):
    """What each row has said so far, its prompt included."""

    tokens: Int[Array, "Dn H"]
    ends: Int[Array, " Dn"]  # the column behind its last token; beyond it, anything


class _Ahead(NamedTuple):
    """The carry of the loop."""

    step: Int[Array, ""]
    drawn: Drawn
    text: Text


def draw_ahead(
    model: Model,
    params: Params,
    start: Drawn,
    text: Text,
    visible: Bool[Array, "Dn S"],
    decoding: Decoding,
    *,
    guesses: int,
    shards: int,
) -> Drawn:
    """Draws tokens until ``decoding`` says so, or until a row has no columns for ``guesses`` more.

    A row's tokens stand behind the S columns that were there before, without gaps.
    """
    (rows, columns), before = start.tokens.shape, visible.shape[1]
    row = jnp.tile(jnp.arange(rows // shards), shards)[:, None]
    number, new = jnp.arange(guesses + 1), jnp.arange(columns)
    of_each = functools.partial(jax.vmap, in_axes=1, out_axes=1)  # of the tokens fed to a row

    def proceed(ahead: _Ahead):
        drawn = ahead.drawn
        most = jnp.where(drawn.alive, drawn.count, 0).max()
        return decoding.proceed(ahead.step, drawn.alive) & (most < columns - guesses)

    def step(ahead: _Ahead) -> _Ahead:
        drawn, (tokens, ends) = ahead.drawn, ahead.text
        token, logprob = decoding.choose(drawn.logits, drawn.count)
        tokens = put_at(tokens, (row, ends[:, None]), token[:, None], shards)
        guessed = guess(Text(tokens, ends + 1), guesses)
        fed = jnp.concatenate([token[:, None], guessed], axis=1)
        seen = jnp.concatenate([visible, new <= drawn.count[:, None] + guesses], axis=1)
        hidden, cache = model.apply(params, fed, seen, drawn.cache, before + drawn.count)
        logits = model.head(params, hidden)
        numbers = drawn.count[:, None] + number
        chosen, logprobs = of_each(decoding.choose)(logits[:, :-1], numbers[:, 1:])
        over = of_each(decoding.over)(fed, numbers)
        right = (guessed == chosen) & ~over[:, :-1]
        kept = jnp.concatenate([drawn.alive[:, None], right], axis=1)
        kept = jnp.cumprod(kept, axis=1, dtype=bool)
        taken = kept.sum(axis=1)
        last = jnp.maximum(taken - 1, 0)[:, None, None]
        place = row, jnp.where(kept, numbers, columns)  # else: nowhere
        logprobs = jnp.concatenate([logprob[:, None], logprobs], axis=1)
        drawn = Drawn(
            count=drawn.count + taken,
            tokens=put_at(drawn.tokens, place, fed, shards),
            logprobs=put_at(drawn.logprobs, place, logprobs, shards),
            alive=drawn.alive & ~(kept & over).any(axis=1),
            logits=jnp.take_along_axis(logits, last, axis=1)[:, 0],
            cache=cache,
        )
        tokens = put_at(tokens, (row, ends[:, None] + number), fed, shards)
        return _Ahead(ahead.step + 1, drawn, Text(tokens, ends + taken))

    return jax.lax.while_loop(proceed, step, _Ahead(jnp.int32(0), start, text)).drawn


def guess(text: Text, count: int) -> Int[Array, "Dn N"]:
    """The ``count`` tokens that may follow: those behind the latest place where the text reads as
    at its end, over two tokens, or else over one. Where they run into the end, they begin again.
    If there is no such place, the last token is repeated.
    """
    (_, width), columns = text.tokens.shape, jnp.arange(text.tokens.shape[1])
    last = text.ends[:, None] - 1
    alike, length = columns < last, 0
    for back in range(MOST_ALIKE):
        token = jnp.take_along_axis(text.tokens, last - back, axis=1, mode="clip")
        alike &= (jnp.roll(text.tokens, back, axis=1) == token) & (columns >= back)
        length += alike
    place = jnp.where(columns < last, length * width + columns, -1).argmax(axis=1)[:, None]
    follows = place + 1 + jnp.arange(count) % (last - place)
    return jnp.take_along_axis(text.tokens, follows, axis=1, mode="clip")
