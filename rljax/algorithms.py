"""Algorithms as short compositions of advantages and losses."""

import functools

import jax.numpy as jnp

from rljax.advantages import gae
from rljax.errors import UserError
from rljax.losses import clipped_surrogate, clipped_value_loss, make_weigh
from rljax.types import Algorithm, Experience, Metrics, Outputs


def ppo(
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    value_clip: float | None = 0.5,
    entropy_coef: float = 0.0,
    aggregation: str = "token-mean",
    norm_tokens: float | None = None,
) -> Algorithm:
    """PPO with a critic: GAE, the clipped surrogate, a clipped value loss, and an entropy bonus of
    ``entropy_coef`` per token.

    Defaults as in verl; ``aggregation`` and ``norm_tokens`` as in ``rljax.losses.token_weights``.
    Source: Schulman et al. 2017, arXiv 1707.06347.
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise UserError(f"ppo: gamma and lam must lie in [0, 1]; got {gamma}, {lam}")
    if not (0 <= clip_low < 1 and clip_high >= 0) or (dual_clip is not None and dual_clip <= 1):
        raise UserError(
            "ppo: needs 0 <= clip_low < 1, clip_high >= 0 and dual_clip > 1 or null; "
            f"got {clip_low}, {clip_high}, {dual_clip}"
        )

    if value_clip is not None and value_clip <= 0:
        raise UserError(f"ppo: value_clip must be positive, or null for none; got {value_clip}")

    def loss(outputs: Outputs, batch: Experience) -> tuple[jnp.ndarray, Metrics]:
        def mean(x):
            return jnp.sum(batch.mean_weights * x)

        policy, stats = clipped_surrogate(
            outputs.logprobs,
            batch.logprobs,
            batch.advantages,
            clip_low=clip_low,
            clip_high=clip_high,
            dual_clip=dual_clip,
        )
        value, value_clipped = clipped_value_loss(
            outputs.values, batch.values, batch.returns, clip=value_clip
        )
        total = jnp.sum(batch.loss_weights * (policy + value - entropy_coef * outputs.entropy))
        metrics = {
            "policy/loss": jnp.sum(batch.loss_weights * policy),
            "policy/entropy": mean(outputs.entropy),
            "value/loss": jnp.sum(batch.loss_weights * value),
            "value/clipfrac": mean(value_clipped),
            "value/mean": mean(batch.values),
            "value/return_mean": mean(batch.returns),
        }
        metrics |= {f"policy/{name}": mean(stat) for name, stat in stats.items()}
        return total, metrics

    estimate = functools.partial(gae, gamma=gamma, lam=lam)
    return Algorithm(estimate, loss, make_weigh(aggregation, norm_tokens), needs_value=True)


def sft(*, aggregation: str = "token-mean", norm_tokens: float | None = None) -> Algorithm:
    """Supervised fine-tuning: the cross entropy of the completion's tokens, in nats."""

    def loss(outputs: Outputs, batch: Experience) -> tuple[jnp.ndarray, Metrics]:
        total = -jnp.sum(batch.loss_weights * outputs.logprobs)
        return total, {"policy/nll": -jnp.sum(batch.mean_weights * outputs.logprobs)}

    return Algorithm(None, loss, make_weigh(aggregation, norm_tokens), needs_value=False)


__all__ = ["ppo", "sft"]
