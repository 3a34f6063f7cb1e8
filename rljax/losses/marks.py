"""Tokens that a policy loss treats apart, chosen once over a whole minibatch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from rljax.masked import masked_mean
from rljax.types import Experience


def mark_random_covariant(
    batch: Experience,
    key: PRNGKeyArray,
    *,
    share: float = 2e-4,
    lowest: float = 1.0,
    highest: float = 5.0,
) -> Bool[Array, "B T"]:
    """Marks ``share`` of the tokens, at least one, drawn at random among those whose covariance of
    log-prob and advantage lies between ``lowest`` and ``highest``."""
    covariance = _covariance(batch)
    eligible = batch.action_mask & (covariance > lowest) & (covariance < highest)
    drawn = jax.random.uniform(key, eligible.shape)
    return _highest(jnp.where(eligible, drawn, -jnp.inf), batch.action_mask, share)


def mark_most_covariant(
    batch: Experience, key: PRNGKeyArray, *, share: float = 2e-4
) -> Bool[Array, "B T"]:
    """Marks the ``share`` of the tokens, at least one, of highest covariance of log-prob and
    advantage."""
    del key
    scores = jnp.where(batch.action_mask, _covariance(batch), -jnp.inf)
    return _highest(scores, batch.action_mask, share)


def _covariance(batch: Experience) -> Float[Array, "B T"]:
    """(log-prob − its mean)·(A − its mean), over a whole minibatch and with the log-probs that the
    update began with, so that micro-batches change nothing. verl takes those of now, and the means
    of each micro-batch."""
    mask = batch.action_mask
    logprobs = batch.logprobs - masked_mean(batch.logprobs, mask)
    return logprobs * (batch.advantages - masked_mean(batch.advantages, mask))


def _highest(scores: Float[Array, "B T"], mask: Bool[Array, "B T"], share: float):
    """The entries of the highest scores, a share of the mask's and at least one; none at −inf."""
    count = jnp.maximum((share * mask.sum()).astype(jnp.int32), 1)
    order = jnp.argsort(-scores.reshape(-1), stable=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    return (rank < count).reshape(scores.shape) & jnp.isfinite(scores)
