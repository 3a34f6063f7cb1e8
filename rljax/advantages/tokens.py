"""Where rewards land, which tokens are learned from, and what is still to come at each."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.types import Rewards, Rollout


def learned_tokens(rewards: Rewards, rollout: Rollout) -> Bool[Array, "B T"]:
    """The tokens that the policy chose, in the responses that count."""
    return rollout.action_mask & rewards.counted[:, None]


def token_rewards(rewards: Rewards, action_mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """The reward of every token: its own, and on a response's last token that of the response."""
    width = action_mask.shape[-1]
    last = width - 1 - jnp.argmax(action_mask[:, ::-1], axis=-1)
    at_last = (jnp.arange(width) == last[:, None]) & action_mask
    of_response = jnp.where(at_last, rewards.response[:, None], 0.0)
    return jnp.where(action_mask, rewards.token, 0.0) + of_response


def rewards_to_go(rewards: Rewards, rollout: Rollout, *, gamma: float) -> Float[Array, "B T"]:
    """G_t = r_t + γ·G_{t+1}, backwards over the response's tokens; masked positions inside a
    response pass G on as it is, and hold none of their own."""

    def backwards(to_go, column):
        reward, real = column
        to_go = jnp.where(real, reward + gamma * to_go, to_go)
        return to_go, jnp.where(real, to_go, 0.0)

    mask = rollout.action_mask
    per_token = token_rewards(rewards, mask)
    zeros = jnp.zeros(mask.shape[0], per_token.dtype)
    return jax.lax.scan(backwards, zeros, (per_token.T, mask.T), reverse=True)[1].T
