"""What a network says of given tokens, by the row rule: column t concerns emitting tokens[:, t]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rljax.sharding import lay
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

    The logits of a vocabulary with parts (``Model.head_parts``) exist a part at a time, and are
    computed anew for the gradient.

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
    if model.head_parts is None:
        logp = log_distribution(model, params, hidden[:, :-1], temperature)
        chosen, entropy = chosen_logprobs(logp, tokens[:, 1:])
        return from_second(chosen), from_second(entropy)
    following = jnp.roll(tokens, -1, axis=1)
    exact = hidden.astype(jnp.float32)  # in which the parts' gradients are added up

    @jax.checkpoint
    def of_part(part):
        """log Σ exp and mean of the part's logits, and the logit of the id that follows, or 0."""
        changed, ids = part
        logits = model.head(params | changed, exact.astype(hidden.dtype)) / temperature
        logits = lay(logits, ("rows", "columns", "vocab"))
        there = ids >= 0
        total = jax.nn.logsumexp(logits, axis=-1, where=there)
        share = jnp.exp(jnp.where(there, logits - total[..., None], -jnp.inf))
        chosen = jnp.where(ids == following[..., None], logits, 0.0)
        return total, jnp.sum(share * logits, axis=-1), chosen.sum(axis=-1)

    totals, means, chosen = jax.lax.map(of_part, model.head_parts(params))
    total = jax.nn.logsumexp(totals, axis=0)
    mean = jnp.sum(jnp.exp(totals - total) * means, axis=0)
    logprobs, entropy = chosen.sum(axis=0) - total, total - mean
    return from_second(logprobs[:, :-1]), from_second(entropy[:, :-1])


def vocab_parts(model: Model, params: Params) -> int:
    """In how many parts the logits of a model's vocabulary are computed."""
    if model.head_parts is None:
        return 1
    _, ids = jax.eval_shape(model.head_parts, params)
    return ids.shape[0]


def log_distribution(
    model: Model, params: Params, hidden: Float[Array, "B U D"], temperature: float
) -> Float[Array, "B U V"]:
    """The log-probs of the whole vocabulary behind each hidden state."""
    return jax.nn.log_softmax(model.head(params, hidden) / temperature, axis=-1)


def chosen_logprobs(
    logp: Float[Array, "B U V"], tokens: Int[Array, "B U"]
) -> tuple[Float[Array, "B U"], Float[Array, "B U"]]:
    """The log-probs of ``tokens``, and the entropies."""
    chosen = jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(logp) * logp, axis=-1)


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
