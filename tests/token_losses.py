"""Batches for losses of tokens, and what is minimised of them."""

import jax
import jax.numpy as jnp

from rljax.losses import token_weights
from rljax.types import Experience


def make_batch(old, advantages, mask=None, marked=None) -> Experience:
    old, advantages = jnp.asarray(old, jnp.float32), jnp.asarray(advantages, jnp.float32)
    mask = jnp.ones(old.shape, bool) if mask is None else mask
    return Experience(
        tokens=jnp.zeros(old.shape, jnp.int32),
        mask=mask,
        action_mask=mask,
        logprobs=old,
        advantages=advantages,
        marked=jnp.zeros(old.shape, bool) if marked is None else marked,
        loss_weights=token_weights(mask, mode="seq-mean-token-mean"),
    )


def weighted(loss, logprobs, batch):
    """What is minimised, its gradient, and the stats."""

    def total(x):
        tokens, stats = loss(x, batch)
        return jnp.sum(batch.loss_weights * tokens), stats

    (value, stats), slope = jax.value_and_grad(total, has_aux=True)(logprobs)
    return value, slope, stats
