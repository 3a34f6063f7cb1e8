"""Generalised advantage estimation, and where a response's reward lands."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.masked import masked_whiten
from rljax.types import Rewards, Rollout


def token_rewards(rewards: Rewards, action_mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """The reward of every token: its own, and on a response's last token that of the response."""
    width = action_mask.shape[-1]
    last = width - 1 - jnp.argmax(action_mask[:, ::-1], axis=-1)
    at_last = (jnp.arange(width) == last[:, None]) & action_mask
    of_response = jnp.where(at_last, rewards.response[:, None], 0.0)
    return jnp.where(action_mask, rewards.token, 0.0) + of_response


def discounted_gae(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
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
    whiten: bool = True,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """GAE of a rollout with values; the advantages whitened over the whole batch, as verl does.

    The returns are taken before the whitening.
    """
    mask = rollout.action_mask
    per_token = token_rewards(rewards, mask)
    advantages, returns = discounted_gae(per_token, rollout.values, mask, gamma=gamma, lam=lam)
    return (masked_whiten(advantages, mask) if whiten else advantages), returns
