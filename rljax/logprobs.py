"""What a network says of given tokens, by the row rule: column t concerns emitting tokens[:, t]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rljax.types import Model, Params


def token_logprobs(
    model: Model,
    params: Params,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
    *,
    temperature: float = 1.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """log π(tokens[t] | tokens[<t]) and the entropy of π(· | tokens[<t]), in nats.

    Both are of softmax(logits / temperature), as the sampler's are, so that identical policies
    have identical log-probs. Column 0, which nothing precedes, is 0. ``segments`` number the
    sequences of packed rows; what a segment's first token has, means nothing.
    """
    hidden = hidden_states(model, params, tokens, mask, segments)
    return hidden_logprobs(model, params, hidden, tokens, temperature=temperature)


def hidden_states(
    model: Model,
    params: Params,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    segments: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T D"]:
    """What the head reads. A model that is given no packed rows need not know of segments."""
    packed = {} if segments is None else {"segments": segments}
    return model.apply(params, tokens, mask, **packed)


def token_values(
    model: Model, params: Params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """V of the state before each token; column 0 is 0."""
    return hidden_values(model, params, model.apply(params, tokens, mask))


def hidden_logprobs(
    model: Model,
    params: Params,
    hidden: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    *,
    temperature: float = 1.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """``token_logprobs``, where the hidden states are known."""
    logp = next_logprobs(model, params, hidden, temperature=temperature)
    return chosen_logprobs(logp, tokens)


def next_logprobs(
    model: Model, params: Params, hidden: Float[Array, "B T D"], *, temperature: float = 1.0
) -> Float[Array, "B U V"]:
    """log π(· | tokens[<t]) over the vocabulary, from the second column on."""
    return jax.nn.log_softmax(model.head(params, hidden[:, :-1]) / temperature, axis=-1)


def chosen_logprobs(
    logp: Float[Array, "B U V"], tokens: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The log-probs of the tokens that stand there, and the entropies; column 0 is 0."""
    chosen = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return from_second(chosen), from_second(entropy)


def hidden_values(
    model: Model, params: Params, hidden: Float[Array, "B T D"]
) -> Float[Array, "B T"]:
    """``token_values``, where the hidden states are known."""
    return from_second(model.head(params, hidden[:, :-1]))


def sequence_scores(
    model: Model, params: Params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, " B"]:
    """A reward model's score of each row, read at the row's last real token."""
    hidden = model.apply(params, tokens, mask)
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[1]), 0), axis=-1)
    at_last = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return model.head(params, at_last)


def from_second(x: Float[Array, "B U"]) -> Float[Array, "B T"]:
    """What concerns the tokens from the second on, by the row rule; column 0 is 0."""
    return jnp.pad(x, [(0, 0), (1, 0)])
