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
    *,
    temperature: float = 1.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """log π(tokens[t] | tokens[<t]) and the entropy of π(· | tokens[<t]), in nats.

    Both are of softmax(logits / temperature), as the sampler's are, so that identical policies
    have identical log-probs. Column 0, which nothing precedes, is 0.
    """
    hidden = model.apply(params, tokens, mask)[:, :-1]
    logp = jax.nn.log_softmax(model.head(params, hidden) / temperature, axis=-1)
    chosen = jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return _from_second(chosen), _from_second(entropy)


def token_values(
    model: Model, params: Params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """V of the state before each token; column 0 is 0."""
    hidden = model.apply(params, tokens, mask)[:, :-1]
    return _from_second(model.head(params, hidden))


def _from_second(x):
    return jnp.pad(x, [(0, 0), (1, 0)])
