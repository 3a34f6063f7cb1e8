"""From shaped rewards to the advantage of every token."""

from rljax.advantages.gae import discounted_gae, gae, token_rewards

__all__ = ["discounted_gae", "gae", "token_rewards"]
