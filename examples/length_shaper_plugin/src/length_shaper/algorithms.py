"""GRPO against the median of the group."""

from functools import partial

import jax.numpy as jnp

from rljax.compose import policy_gradient
from rljax.errors import UserError
from rljax.losses import clipped_surrogate
from rljax.types import Algorithm


def above_the_median(rewards, rollout):
    """(R − median of the group) on each token of a response; 0 where nothing is to be learned.

    One response that rambled to the end of its budget and paid for it moves the mean of its group,
    and makes the others look good. It does not move the median.
    """
    total = rewards.shaped
    same = (rollout.group[:, None] == rollout.group) & rewards.counted  # [B, B]
    median = jnp.nanmedian(jnp.where(same, total, jnp.nan), axis=-1)
    learned = rewards.counted & (same.sum(axis=-1) > 1)
    advantage = jnp.where(learned, total - median, 0.0)
    return jnp.where(rollout.action_mask, advantage[:, None], 0.0), None


def median_grpo(
    *, clip_low: float = 0.2, clip_high: float = 0.2, entropy_coef: float = 0.0
) -> Algorithm:
    """GRPO with the group's median in place of its mean, and no division by its deviation.

    Args:
      clip_low, clip_high: how far a token's probability ratio may move, as of ``grpo``.
      entropy_coef: the bonus for a nat of the policy's entropy.
    """
    if not (0 < clip_low <= 1 and clip_high > 0):
        raise UserError(
            f"median_grpo: needs 0 < clip_low <= 1 and clip_high > 0; got {clip_low}, {clip_high}"
        )
    return policy_gradient(
        above_the_median,
        partial(clipped_surrogate, clip_low=clip_low, clip_high=clip_high, dual_clip=None),
        aggregation="seq-mean-token-mean",
        entropy_coef=entropy_coef,
        needs_groups=True,
    )
