"""The parts of sampling: settle the parameters, prefill prompts, then draw tokens and feed them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from rljax.sharding import GATHERED, SAMPLING, Axes, lay, lay_tree
from rljax.types import Array, Cache, Model, Params


class Decoding(NamedTuple):
    """How rows go on, by the numbers of their tokens."""

    choose: Callable[..., tuple[Array, Array]]  # (logits, number) -> the next tokens, log-probs
    over: Callable[..., Array]  # (tokens, number) -> which of them are their row's last
    proceed: Callable[..., Array]  # (steps, rows that are alive) -> whether there is another


def settle(model: Model, params: Params) -> Params:
    """Parameters cast and laid out for decoding: once, and not for every token."""
    params = model.cast(params)
    for rules in (GATHERED, SAMPLING):
        params = lay_tree(params, model.axes, rules)
    return model.unstack(params)


def prefill(
    model: Model, params: Params, tokens: Int[Array, "P W"], mask: Bool[Array, "P W"]
) -> tuple[Float[Array, "P V"], Cache]:
    """The logits behind prompts that are padded on the left, and the cache of their columns."""
    hidden, cache = model.apply(params, tokens, mask, model.init_cache(*tokens.shape))
    return model.head(params, hidden[:, -1]), cache


def draw(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    *,
    temperature: float | Float[Array, "B 1"],
    greedy: Bool[Array, " B"],
    filter: Callable[[Array], Array],
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """The next token of each row, with its log-prob under softmax(logits / temperature)."""
    scaled = logits / temperature
    drawn = jax.vmap(jax.random.categorical)(keys, filter(scaled))
    token = jnp.where(greedy, jnp.argmax(scaled, axis=-1), drawn)
    logprob = jnp.take_along_axis(jax.nn.log_softmax(scaled), token[:, None], axis=-1)
    return token, logprob[:, 0]


def feed(
    model: Model,
    params: Params,
    token: Int[Array, " B"],
    visible: Bool[Array, "B S"],
    cache: Cache,
    column: Int[Array, ""],
) -> tuple[Float[Array, "B V"], Cache]:
    """The logits behind one more token of each row, which stands at ``column``."""
    hidden, cache = model.apply(params, token[:, None], visible, cache, column)
    return model.head(params, hidden[:, 0]), cache


def cache_axes(x: Array | jax.ShapeDtypeStruct) -> Axes:
    """The logical axes of an array of a cache."""
    return ("layers", "rows", "kv_heads", None, None)[-x.ndim :]


def lay_cache(cache: Cache) -> Cache:
    return jax.tree.map(lambda x: lay(x, cache_axes(x), SAMPLING), cache)
