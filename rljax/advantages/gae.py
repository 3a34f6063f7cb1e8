"""Generalised advantage estimation."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.advantages.tokens import learned_tokens, token_rewards
from rljax.masked import masked_whiten
from rljax.types import Rewards, Rollout


def discounted_gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    gamma: float = 1.0,
    lam: float | Float[Array, " B"] = 1.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Advantages and returns, backwards over the response tokens:

        δ_t = r_t + γ·V_{t+1} − V_t,   A_t = δ_t + γλ·A_{t+1},   R_t = A_t + V_t

    ``values[:, t]`` is V of the state before token t. V_{t+1} and A_{t+1} are 0 past the end, and
    held over masked positions inside a response (the output of a tool, say). Outside the mask both
    results are 0. Source: Schulman et al. 2016, arXiv 1506.02438, eq. 16.
    """

    chex.assert_equal_shape([rewards, values, mask])

    def backwards(carry, column):
        next_value, next_advantage = carry
        reward, value, real = column
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * lam * next_advantage
        carry = (jnp.where(real, value, next_value), jnp.where(real, advantage, next_advantage))
        return carry, jnp.where(real, advantage, 0.0)

    zeros = jnp.zeros(rewards.shape[0], rewards.dtype)
    _, advantages = jax.lax.scan(
        backwards, (zeros, zeros), (rewards.T, values.T, mask.T), reverse=True
    )
    advantages = advantages.T
    return advantages, jnp.where(mask, advantages + values, 0.0)


def gae(
    rewards: Rewards,
    rollout: Rollout,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    lam_value: float | None = None,
    length_alpha: float | None = None,
    whiten: bool = True,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """GAE of a rollout with values; the advantages whitened over the whole batch, as verl does.

    The returns are taken before the whitening.

    Args:
      lam_value: the λ of the returns, where it is another than that of the advantages.
      length_alpha: if given, the λ of a response of n tokens is 1 − 1/(length_alpha · n) instead
        of ``lam``, at least 0, so that the reward of a long one still reaches its beginning.

    Source of the last two: VAPO, Yue et al. 2025, arXiv 2504.05118, sections 4.1 and 4.2.
    """
    mask, learned = rollout.action_mask, learned_tokens(rewards, rollout)
    per_token = token_rewards(rewards, mask)
    of_policy = lam
    if length_alpha is not None:
        tokens = jnp.maximum(rollout.lengths, 1)
        of_policy = jnp.maximum(1.0 - 1.0 / (length_alpha * tokens), 0.0)
    advantages, returns = discounted_gae(
        per_token, rollout.values, mask, gamma=gamma, lam=of_policy
    )
    if lam_value is not None:
        _, returns = discounted_gae(per_token, rollout.values, mask, gamma=gamma, lam=lam_value)
    if whiten:
        return masked_whiten(advantages, learned), returns
    return jnp.where(learned, advantages, 0.0), returns
