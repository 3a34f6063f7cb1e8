"""Rollout correction: what a token weighs that another policy drew than the one being trained.

The sampler's policy is another when the rollout is stale, or its arithmetic is coarser.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.errors import UserError
from rljax.kl import kl_estimator
from rljax.masked import masked_mean, masked_sum
from rljax.types import Metrics, Rollout

# (log-probs [B, T] of the policy of now, rollout, the rows that count)
# -> the weight of each token, the rows that are kept, metrics
Correction = Callable[
    [Array, Rollout, Array], tuple[Float[Array, "B T"], Bool[Array, " B"], Metrics]
]


def make_correction(
    *,
    level: Literal["token", "sequence", "none"] = "token",
    cap: float = 2.0,
    reject_above: float | None = None,
    reject_by: Literal["mean", "max"] = "mean",
    estimator: str = "k3",
) -> Correction:
    """``rollout_correction`` with its settings bound, and checked."""
    if cap <= 0 or (reject_above is not None and reject_above <= 0):
        raise UserError(
            f"correction: needs cap > 0, and reject_above > 0 or null; got {cap}, {reject_above}"
        )
    if level == "none" and reject_above is None:
        raise UserError('correction: level "none" without reject_above would correct nothing')
    if level == "none" and cap != 2.0:
        raise UserError('correction: cap is of the weights, and level "none" has none')
    if reject_above is None and (reject_by, estimator) != ("mean", "k3"):
        raise UserError("correction: reject_by and estimator do nothing without reject_above")
    kl_estimator(estimator)
    return functools.partial(
        rollout_correction,
        level=level,
        cap=cap,
        reject_above=reject_above,
        reject_by=reject_by,
        estimator=estimator,
    )


def rollout_correction(
    logprobs: Float[Array, "B T"],
    rollout: Rollout,
    counted: Bool[Array, " B"],
    *,
    level: Literal["token", "sequence", "none"],
    cap: float,
    reject_above: float | None,
    reject_by: Literal["mean", "max"],
    estimator: str,
) -> tuple[Float[Array, "B T"], Bool[Array, " B"], Metrics]:
    """Truncated importance weights of the policy of now over the one that sampled, and rejection.

    With d = logprobs − rollout.logprobs, within ±20:

    - ``token``: min(e^d, cap) for each token; ``sequence``: min(e^Σd, cap), Σ over the response;
      ``none``: 1.
    - A response is left out where the KL estimate of the sampler from the policy of now, its mean
      or its max over the response's tokens, is further from 0 than ``reject_above``, in nats.

    Metrics: ``correction/kl`` (k3, mean per token), ``correction/importance_mean``,
    ``correction/capped_ratio``, ``correction/rejected_ratio``. As verl's rollout correction; the
    truncation: Espeholt et al. 2018, arXiv 1802.01561.
    """
    mask = rollout.action_mask
    now = jnp.where(mask, logprobs, 0.0)
    log_ratio = jnp.clip(now - rollout.logprobs, -20.0, 20.0)
    if level == "sequence":
        total = masked_sum(log_ratio, mask, axis=-1)[:, None]
        log_ratio = jnp.broadcast_to(jnp.clip(total, -20.0, 20.0), mask.shape)
    if level == "none":
        log_ratio, cap = jnp.zeros(mask.shape), 1.0
    ratio = jnp.exp(log_ratio)
    importance = jnp.where(mask, jnp.minimum(ratio, cap), 0.0)
    apart = kl_estimator(estimator)(rollout.logprobs, now)
    if reject_by == "mean":
        distance = jnp.abs(masked_mean(apart, mask, axis=-1))
    else:
        distance = jnp.max(jnp.where(mask, jnp.abs(apart), 0.0), axis=-1)
    kept = jnp.ones(counted.shape, bool) if reject_above is None else distance <= reject_above
    of = mask & counted[:, None]
    metrics = {
        "correction/kl": masked_mean(kl_estimator("k3")(rollout.logprobs, now), of),
        "correction/importance_mean": masked_mean(importance, of),
        "correction/capped_ratio": masked_mean((ratio > cap).astype(jnp.float32), of),
        "correction/rejected_ratio": masked_mean((~kept).astype(jnp.float32), counted),
    }
    return importance, kept, metrics
