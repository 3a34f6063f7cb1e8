"""Sampling inside the compiled step: prefill once per prompt, then decode until every row ends."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key, PRNGKeyArray

from rljax.errors import UserError
from rljax.models import extend_cache
from rljax.sampling.filters import make_filter
from rljax.sharding import GATHERED, SAMPLING, lay, lay_tree, spread_rows
from rljax.types import Array, Cache, Model, Params, Prompts, Rollout

CACHE = ("layers", "rows", "kv_heads", None, None)  # logical axes


class Decoding(NamedTuple):
    """The carry of the decode loop; S = prompt + response columns."""

    drawn: Int[Array, ""]  # tokens drawn so far
    tokens: Int[Array, "B S"]
    logprobs: Float[Array, "B S"]
    action_mask: Array
    ended: Array  # [B]: an EOS was drawn
    logits: Float[Array, "B V"]  # of the next token
    cache: Cache


def sample(
    model: Model,
    params: Params,
    prompts: Prompts,
    key: PRNGKeyArray,
    *,
    max_tokens: int,
    eos_ids: Sequence[int],
    pad_id: int,
    group_size: int = 1,
    temperature: float = 1.0,
    greedy: bool | Bool[Array, "*rows"] = False,
    filter: Callable[[Array], Array] = lambda logits: logits,
    first_row: int | Int[Array, ""] = 0,
) -> Rollout:
    """Draws ``group_size`` responses of at most ``max_tokens`` for each of P prompts.

    Prompts are prefilled once and their caches shared by the group. The loop ends when every row
    has drawn an EOS. Row i's token n is drawn with the key folded by i and n alone, so that it
    does not depend on its neighbours, the mesh, or the number of hosts.

    Args:
      key: one per step.
      eos_ids: every id that ends a response; the EOS is part of it.
      temperature: above 0; log-probs are of softmax(logits / temperature), before the filter.
      greedy: rows that take the most probable token instead of drawing one; all, none, or each.
      filter: logits -> logits, such as ``make_filter(top_p=0.9)``, applied after the temperature.
      first_row: the number i of the first row, where the prompts are a part of more.

    Returns: a Rollout of B = P · group_size rows and T = prompt width + max_tokens columns.
    """
    count, width = prompts.tokens.shape
    rows = count * group_size

    def repeat(tree):
        return jax.tree.map(lambda x: spread_rows(jnp.repeat(x, group_size, axis=0)), tree)

    greedy = jnp.broadcast_to(greedy, (rows,))
    row_keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(first_row + jnp.arange(rows))
    eos = jnp.asarray(eos_ids)

    params = settle(model, params)
    logits, cache = prefill(model, params, prompts.tokens, prompts.mask)
    cache = extend_cache(cache, max_tokens, group_size)
    room = [(0, 0), (0, max_tokens)]
    prompt_mask = jnp.pad(repeat(prompts.mask), room)
    zeros = jnp.zeros((rows, width + max_tokens))
    start = Decoding(
        drawn=jnp.int32(0),
        tokens=jnp.pad(repeat(prompts.tokens), room, constant_values=pad_id),
        logprobs=zeros,
        action_mask=zeros.astype(bool),
        ended=jnp.zeros(rows, bool),
        logits=repeat(logits),
        cache=jax.tree.map(lambda x: lay(x, CACHE, SAMPLING), cache),
    )

    def proceed(state: Decoding):
        return (state.drawn < max_tokens) & ~state.ended.all()

    def decode(state: Decoding) -> Decoding:
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, state.drawn)
        token, logprob = draw(
            state.logits, keys, temperature=temperature, greedy=greedy, filter=filter
        )
        alive = ~state.ended
        column = width + state.drawn

        def put(array, new):
            return jax.lax.dynamic_update_slice_in_dim(array, new[:, None], column, axis=1)

        token = jnp.where(alive, token, pad_id).astype(state.tokens.dtype)
        action_mask = put(state.action_mask, alive)
        visible = prompt_mask | action_mask
        logits, cache = feed(model, params, token, visible, state.cache, column)
        return Decoding(
            drawn=state.drawn + 1,
            tokens=put(state.tokens, token),
            logprobs=put(state.logprobs, jnp.where(alive, logprob, 0.0)),
            action_mask=action_mask,
            ended=state.ended | (alive & jnp.isin(token, eos)),
            logits=logits,
            cache=cache,
        )

    end = jax.lax.while_loop(proceed, decode, start)
    return spread_rows(
        Rollout(
            tokens=end.tokens,
            mask=prompt_mask | end.action_mask,
            action_mask=end.action_mask,
            logprobs=end.logprobs,
            truncated=~end.ended,
            greedy=greedy,
            group=jnp.repeat(jnp.arange(count), group_size),
            extras=repeat(prompts.extras),
        )
    )


def settle(model: Model, params: Params) -> Params:
    """Parameters cast and laid out for decoding: once, and not for every token."""
    params = model.cast(params)
    for rules in (GATHERED, SAMPLING):
        params = lay_tree(params, model.axes, rules)
    return params


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


def make_sampler(
    model: Model,
    /,
    *,
    max_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    group_size: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Callable[..., Rollout]:
    """``sample`` with its settings bound: (params, prompts, key) -> Rollout.

    Its keywords ``group_size``, ``greedy`` and ``first_row`` may be given in a call.
    """
    if max_tokens < 1 or group_size < 1 or temperature <= 0 or not eos_ids:
        raise UserError(
            "sampling: needs max_tokens >= 1, group_size >= 1, temperature > 0 and an EOS id; "
            f"got {max_tokens}, {group_size}, {temperature}, {list(eos_ids)}"
        )
    return functools.partial(
        sample,
        model,
        max_tokens=max_tokens,
        eos_ids=eos_ids,
        pad_id=pad_id,
        group_size=group_size,
        temperature=temperature,
        filter=make_filter(top_k=top_k, top_p=top_p, min_p=min_p),
    )
