"""From shaped rewards to the advantage of every token: ``estimate(rewards, rollout)``."""

from rljax.advantages.gae import discounted_gae, gae
from rljax.advantages.outcome import (
    gpg,
    group_relative,
    opo,
    pass_at_k,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    remax,
    rloo,
)
from rljax.advantages.tokens import learned_tokens, rewards_to_go, token_rewards

__all__ = [
    "discounted_gae",
    "gae",
    "gpg",
    "group_relative",
    "learned_tokens",
    "opo",
    "pass_at_k",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "rewards_to_go",
    "rloo",
    "token_rewards",
]
