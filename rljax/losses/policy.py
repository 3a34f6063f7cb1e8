"""Policy losses, token by token; ``aggregate.token_weights`` turns them into one number."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float

MAX_LOG_RATIO = 20.0  # e^20 is finite in float32, and so are its products


def clipped_surrogate(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
) -> tuple[Float[Array, "B T"], dict[str, Float[Array, "B T"]]]:
    """PPO's pessimistic surrogate, with r = exp(logprobs − old_logprobs).

        max(−A·r, −A·clip(r, 1 − clip_low, 1 + clip_high)),  and for A < 0 no more than −A·dual_clip

    Returns the loss of each token, and by name, for each token: ``ppo_kl`` (the k1 estimate of how
    far the policy has moved), ``clipfrac`` and ``clipfrac_dual`` (1 where a clip decided).

    Sources: Schulman et al. 2017, arXiv 1707.06347, eq. 7; dual clip: arXiv 1912.09729, eq. 5;
    asymmetric clip: arXiv 2503.14476, eq. 10.
    """
    chex.assert_equal_shape([logprobs, old_logprobs, advantages])
    log_ratio = jnp.clip(logprobs - old_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = jnp.exp(log_ratio)
    free = -advantages * ratio
    clipped = -advantages * jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    loss = jnp.maximum(free, clipped)
    stats = {"ppo_kl": -log_ratio, "clipfrac": (clipped > free).astype(jnp.float32)}
    if dual_clip is not None:
        bound = -advantages * dual_clip
        bounded = (advantages < 0) & (loss > bound)
        loss = jnp.where(bounded, bound, loss)
        stats["clipfrac_dual"] = bounded.astype(jnp.float32)
    return loss, stats
