"""Advantages without a critic, against a baseline from the group or from the batch.

R is all that a response earned (``rewards.shaped``: a KL penalty per token included), μ and σ are
its group's mean and unbiased standard deviation, and G the group's size, over the responses that
count. A response that does not count gets 0, and so does one that is alone in a group that it is
compared with. REINFORCE++ and ReMax have a number for each token; in all others a response's number
stands on each of its tokens. None gives returns.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.advantages.tokens import learned_tokens, rewards_to_go
from rljax.grouped import group_count, group_max, group_mean, group_std, group_sum
from rljax.masked import masked_var, masked_whiten
from rljax.types import Rewards, Rollout

PerToken = tuple[Float[Array, "B T"], None]


def group_relative(
    rewards: Rewards,
    rollout: Rollout,
    *,
    scale: Literal["group", "batch", "none"] = "group",
    eps: float = 1e-6,
) -> PerToken:
    """(R − μ) / (σ + eps). The scale is σ of the group, or of the whole batch's R, or 1.

    GRPO divides by the group's σ (verl and TRL by default), Dr. GRPO by nothing (TRL's
    ``scale_rewards="none"``, verl's ``norm_adv_by_std_in_grpo=False``); TRL alone has the batch's.

    Sources: Shao et al. 2024, arXiv 2402.03300, section 4.1.2; Liu et al. 2025, arXiv 2503.20783,
    section 3.2; the batch's: arXiv 2508.08221.
    """
    total, counted = rewards.shaped, rewards.counted
    centred = total - group_mean(total, rollout.group, counted)
    if scale == "group":
        std = group_std(total, rollout.group, counted)
        centred = jnp.where(std > 0, centred / (std + eps), 0.0)  # not what rounding left over
    if scale == "batch":
        centred /= jnp.sqrt(masked_var(total, counted)) + eps
    return _spread(centred, _in_company(rewards, rollout), rollout)


def rloo(rewards: Rewards, rollout: Rollout) -> PerToken:
    """R less the mean of the *other* responses: G/(G − 1) · (R − μ).

    Source: Ahmadian et al. 2024, arXiv 2402.14740, section 3.2.
    """
    total, counted = rewards.shaped, rewards.counted
    size = group_count(rollout.group, counted)
    centred = total - group_mean(total, rollout.group, counted)
    return _spread(
        centred * size / jnp.maximum(size - 1, 1), _in_company(rewards, rollout), rollout
    )


def opo(rewards: Rewards, rollout: Rollout) -> PerToken:
    """R − Σ n·R / Σ n over the group, n the response lengths: the baseline of least variance.

    Source: Hao et al. 2025, arXiv 2505.23585, eq. 7.
    """
    counted, group = rewards.counted, rollout.group
    centred = rewards.shaped - group_mean(rewards.shaped, group, counted)  # rounds less than R
    lengths = rollout.lengths.astype(jnp.float32)
    tokens = jnp.maximum(group_sum(lengths, group, counted), 1)
    baseline = group_sum(lengths * centred, group, counted) / tokens
    return _spread(centred - baseline, _in_company(rewards, rollout), rollout)


def gpg(rewards: Rewards, rollout: Rollout) -> PerToken:
    """(B / N)·(R − μ), N of the batch's B responses having R ≠ 0: the fewer teach, the more each.

    Source: Chu et al. 2025, arXiv 2504.02546, section 3.2; the count as in verl.
    """
    total, counted = rewards.shaped, rewards.counted
    teaching = ((total != 0) & counted).sum()
    boost = counted.sum() / jnp.maximum(teaching, 1)
    centred = total - group_mean(total, rollout.group, counted)
    return _spread(boost * centred, _in_company(rewards, rollout), rollout)


def pass_at_k(rewards: Rewards, rollout: Rollout, *, scale: bool = False) -> PerToken:
    """The best of a group gets best − second best, and all others 0; divided by σ if ``scale``.

    Of several that are equally good the first is the best, and the difference is 0.
    Source: Walder and Karkhanis 2025, arXiv 2503.19595, as in verl's ``grpo_passk``.
    """
    total, counted, group = rewards.shaped, rewards.counted, rollout.group
    rows = jnp.arange(len(total)).astype(jnp.float32)
    best = group_max(total, group, counted)
    of_best = counted & (total == best)
    winner = of_best & (rows == -group_max(-rows, group, of_best))
    second = group_max(total, group, counted & ~winner)
    gain = jnp.where(winner, best - second, 0.0)
    if scale:
        gain /= group_std(total, group, counted) + 1e-6
    return _spread(gain, _in_company(rewards, rollout), rollout)


def reinforce_plus_plus(rewards: Rewards, rollout: Rollout, *, gamma: float = 1.0) -> PerToken:
    """The discounted reward still to come at each token, whitened over the batch's tokens.

    Source: Hu 2025, arXiv 2501.03262, section 3.
    """
    to_go = rewards_to_go(rewards, rollout, gamma=gamma)
    return masked_whiten(to_go, learned_tokens(rewards, rollout)), None


def reinforce_plus_plus_baseline(rewards: Rewards, rollout: Rollout) -> PerToken:
    """R − μ, whitened over the batch's tokens.

    Source: Hu 2025, arXiv 2501.03262, the variant with a baseline; whitened per token, as in verl.
    """
    centred = rewards.shaped - group_mean(rewards.shaped, rollout.group, rewards.counted)
    in_company = _in_company(rewards, rollout)
    spread, _ = _spread(centred, in_company, rollout)
    return masked_whiten(spread, rollout.action_mask & in_company[:, None]), None


def remax(rewards: Rewards, rollout: Rollout, *, gamma: float = 1.0) -> PerToken:
    """The reward still to come at each token, less that of the prompt's greedy response.

    Source: Li et al. 2023, arXiv 2310.10505, algorithm 1.
    """
    baseline = group_sum(rewards.response, rollout.group, rollout.greedy)
    to_go = rewards_to_go(rewards, rollout, gamma=gamma) - baseline[:, None]
    return jnp.where(learned_tokens(rewards, rollout), to_go, 0.0), None


def _in_company(rewards: Rewards, rollout: Rollout) -> Bool[Array, " B"]:
    """Rows that count, in a group where others do too."""
    return rewards.counted & (group_count(rollout.group, rewards.counted) > 1)


def _spread(of_response: Float[Array, " B"], rows: Bool[Array, " B"], rollout: Rollout) -> PerToken:
    """A response's number on each of its tokens, for some rows; 0 elsewhere."""
    return jnp.where(rollout.action_mask & rows[:, None], of_response[:, None], 0.0), None
