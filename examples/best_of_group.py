"""A recipe of one's own: learn from what did better than its group, and from nothing else."""

from functools import partial

import jax.numpy as jnp

from rljax.advantages import group_relative
from rljax.compose import policy_gradient
from rljax.losses import cispo


def above_the_group(rewards, rollout):
    """GRPO's advantages where they are positive, else 0."""
    advantages, _ = group_relative(rewards, rollout)
    return jnp.maximum(advantages, 0.0), None


def best_of_group(*, clip_high: float = 4.0, entropy_coef: float = 0.0):
    """Only good examples, and CISPO's loss, which drops none of their tokens."""
    return policy_gradient(
        above_the_group,
        partial(cispo, clip_high=clip_high),
        entropy_coef=entropy_coef,
        needs_groups=True,
    )
