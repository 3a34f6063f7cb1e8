"""Policy losses, token by token: ``policy_loss(logprobs, batch)``.

``logprobs`` [B, T] are the policy's of now; ``batch`` holds those it began with, the advantages and
the mask. Each returns the loss of every token and, by name and token, what is worth a metric:
``ppo_kl`` (the k1 estimate of how far the policy has moved) and ``clipfrac`` (1 where a clip
decided). ``aggregate.token_weights`` makes one number of it.

Throughout, d = logprobs − batch.logprobs, held within ±20 so that e^d stays finite, r = e^d the
token's ratio, A its advantage, sg() a value whose gradient is not taken.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rljax.masked import masked_mean
from rljax.types import Experience

MAX_LOG_RATIO = 20.0  # e^20 is finite in float32, and so are its products
MAX_SEQUENCE_LOG_RATIO = 10.0

TokenLoss = tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]


def _log_ratio(logprobs: Float[Array, "B T"], batch: Experience) -> Float[Array, "B T"]:
    chex.assert_equal_shape([logprobs, batch.logprobs, batch.advantages])
    return jnp.clip(logprobs - batch.logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def _pessimistic(ratio, advantages, clip_low: float, clip_high: float):
    """The larger loss of the ratio and the clipped ratio, and where the clip decided."""
    free = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return jnp.maximum(free, clipped), (clipped > free).astype(jnp.float32)


def clipped_surrogate(
    logprobs: Float[Array, "B T"],
    batch: Experience,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
) -> TokenLoss:
    """PPO's pessimistic surrogate:

        max(−A·r, −A·clip(r, 1 − clip_low, 1 + clip_high)),  and for A < 0 no more than −A·dual_clip

    ``dual_clip`` None leaves the last out, as TRL does by default (its ``delta``); verl has 3.
    Sources: Schulman et al. 2017, arXiv 1707.06347, eq. 7; dual clip: arXiv 1912.09729, eq. 5;
    asymmetric clip: arXiv 2503.14476, eq. 10.
    """
    log_ratio, advantages = _log_ratio(logprobs, batch), batch.advantages
    loss, clipped = _pessimistic(jnp.exp(log_ratio), advantages, clip_low, clip_high)
    stats = {"ppo_kl": -log_ratio, "clipfrac": clipped}
    if dual_clip is not None:
        bound = -advantages * dual_clip
        bounded = (advantages < 0) & (loss > bound)
        loss = jnp.where(bounded, bound, loss)
        stats["clipfrac_dual"] = bounded.astype(jnp.float32)
    return loss, stats


def gspo(
    logprobs: Float[Array, "B T"],
    batch: Experience,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> TokenLoss:
    """The surrogate of a ratio per sequence: s = exp(mean d over the response's tokens).

    Each token holds s, with its own log-prob's gradient (straight through), so that per-token
    advantages work too; mean d is at most 10, and has no gradient beyond. Aggregate it as
    seq-mean-token-mean.
    Source: Zheng et al. 2025, arXiv 2507.18071, eqs. 5 to 7 and 14 (GSPO-token).
    """
    log_ratio = _log_ratio(logprobs, batch)
    of_sequence = masked_mean(log_ratio, batch.action_mask, axis=-1)[:, None]
    through = jax.lax.stop_gradient(of_sequence) + (logprobs - jax.lax.stop_gradient(logprobs))
    ratio = jnp.exp(jnp.minimum(through, MAX_SEQUENCE_LOG_RATIO))
    loss, clipped = _pessimistic(ratio, batch.advantages, clip_low, clip_high)
    return loss, {"ppo_kl": -log_ratio, "clipfrac": clipped}


def gmpo(
    logprobs: Float[Array, "B T"],
    batch: Experience,
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
) -> TokenLoss:
    """−A times the *geometric* mean over a response's tokens of their clipped ratios.

    Each d is clipped to [−clip_low, clip_high], in log space, where that lowers A·r; A is the mean
    over the response's tokens. Each token holds its response's loss.
    Source: Zhao et al. 2025, arXiv 2507.20673, eq. 4.
    """
    log_ratio, mask = _log_ratio(logprobs, batch), batch.action_mask
    sign = jnp.sign(batch.advantages)
    clipped = jnp.clip(log_ratio, -clip_low, clip_high)
    kept = sign * jnp.minimum(sign * log_ratio, sign * clipped)
    ratio = jnp.exp(masked_mean(kept, mask, axis=-1))
    of_response = -masked_mean(batch.advantages, mask, axis=-1) * ratio
    decided = (sign * clipped < sign * log_ratio).astype(jnp.float32)
    return (
        jnp.broadcast_to(of_response[:, None], mask.shape),
        {"ppo_kl": -log_ratio, "clipfrac": decided},
    )


def cispo(
    logprobs: Float[Array, "B T"],
    batch: Experience,
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
) -> TokenLoss:
    """−sg(clip(r, 1 − clip_low, 1 + clip_high))·A·logprob: a clip that stops no token's gradient.

    The clip is around 1, as in verl; TRL's ``epsilon_high`` is the highest ratio itself. By
    default there is no lower bound, as in the paper.
    Source: MiniMax-M1, arXiv 2506.13585, eqs. 4 and 5.
    """
    log_ratio = _log_ratio(logprobs, batch)
    ratio = jnp.exp(log_ratio)
    weight = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = -jax.lax.stop_gradient(weight) * batch.advantages * logprobs
    return loss, {"ppo_kl": -log_ratio, "clipfrac": (weight != ratio).astype(jnp.float32)}


def sapo(
    logprobs: Float[Array, "B T"],
    batch: Experience,
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> TokenLoss:
    """−A·(4/τ)·σ(τ·(r − 1)): a gate that closes softly where PPO's clip cuts off.

    τ is ``tau_positive`` for A > 0 and ``tau_negative`` otherwise. Aggregate it as
    seq-mean-token-mean. Source: Gao et al. 2025, arXiv 2511.20347, eqs. 5 and 6.
    """
    log_ratio, advantages = _log_ratio(logprobs, batch), batch.advantages
    tau = jnp.where(advantages > 0, tau_positive, tau_negative)
    gate = 4.0 / tau * jax.nn.sigmoid(tau * (jnp.exp(log_ratio) - 1.0))
    return -advantages * gate, {"ppo_kl": -log_ratio}


def reinforce(logprobs: Float[Array, "B T"], batch: Experience) -> TokenLoss:
    """−A·logprob: the plain policy gradient, without a ratio; also GPG's (arXiv 2504.02546).

    It is meant for one update per rollout. Source: Williams 1992, eq. 11.
    """
    return -batch.advantages * logprobs, {"ppo_kl": -_log_ratio(logprobs, batch)}


def clip_cov(
    logprobs: Float[Array, "B T"],
    batch: Experience,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> TokenLoss:
    """The clipped surrogate without its marked tokens (``mark_random_covariant``): their loss is 0.

    Source: Cui et al. 2025, arXiv 2505.22617, section 4.2 (Clip-Cov).
    """
    loss, stats = clipped_surrogate(
        logprobs, batch, clip_low=clip_low, clip_high=clip_high, dual_clip=None
    )
    stats["marked"] = batch.marked.astype(jnp.float32)
    return jnp.where(batch.marked, 0.0, loss), stats


def kl_cov(logprobs: Float[Array, "B T"], batch: Experience, *, coef: float = 1.0) -> TokenLoss:
    """−A·r, and on its marked tokens (``mark_most_covariant``) coef·|d| more.

    Source: Cui et al. 2025, arXiv 2505.22617, section 4.2 (KL-Cov).
    """
    log_ratio = _log_ratio(logprobs, batch)
    distance = jax.lax.stop_gradient(jnp.sign(log_ratio)) * log_ratio  # abs has slope 1 at 0 here
    price = jnp.where(batch.marked, coef * distance, 0.0)
    stats = {"ppo_kl": -log_ratio, "marked": batch.marked.astype(jnp.float32)}
    return -batch.advantages * jnp.exp(log_ratio) + price, stats
