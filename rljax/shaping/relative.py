"""Length measured against the other responses to the same prompt: the group.

n is a response's length in tokens, C its correctness (0 or 1). Everything that is measured of a
group is over its responses that count; μ_c and σ_c, the mean and the standard deviation of the
lengths, over the correct ones among them. Every formula stands in place of C, and the metric
``length_penalty_mean`` is the mean of what it took away, C − formula.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rljax.errors import UserError
from rljax.grouped import group_count, group_max, group_mean, group_min, group_std
from rljax.shaping.terms import (
    capped,
    charge,
    check_positive,
    correctness,
    replace_correctness,
    response_tokens,
)
from rljax.types import Rewards, Rollout, State, Transform


def kimi(*, weight: float = 1.0) -> Transform:
    """C + λ if correct, min(0, λ) if wrong; λ = weight·(½ − (n − min)/(max − min)) over the group,
    right and wrong, and 0 where all are of one length.

    Correct beats wrong at any length, as for any ``weight`` below 2.
    Source: Kimi Team 2025, arXiv 2501.12599, section 2.3.3.
    """
    if not 0 < weight < 2:
        raise UserError(f"kimi: weight must lie between 0 and 2; got {weight}")

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        lengths, group, counted = response_tokens(rollout), rollout.group, rewards.counted
        shortest = group_min(lengths, group, counted)
        spread = group_max(lengths, group, counted) - shortest
        place = jnp.clip((lengths - shortest) / jnp.maximum(spread, 1.0), 0.0, 1.0)
        gain = jnp.where(spread > 0, weight * (0.5 - place), 0.0)
        formula = jnp.where(rewards.correct, 1.0 + gain, jnp.minimum(gain, 0.0))
        return replace_correctness(rewards, formula, state)

    return Transform(lambda: (), apply, needs_groups=True)


def arora_zanette(*, alpha: float = 0.1) -> Transform:
    """C·(1 − alpha·σ((n − μ_c)/σ_c)), σ() the logistic function; σ(0) where σ_c is 0.

    Correct beats wrong at any length, as for any ``alpha`` below 1.
    Source: Arora and Zanette 2025, arXiv 2502.04463; the default, and σ_c without Bessel's
    correction, as in its code.
    """
    if not 0 < alpha < 1:
        raise UserError(f"arora_zanette: alpha must lie between 0 and 1; got {alpha}")

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        right = rewards.correct & rewards.counted
        count = group_count(rollout.group, right)
        uncorrected = jnp.sqrt(count / jnp.maximum(count - 1, 1))
        place = uncorrected * _standardised(response_tokens(rollout), rollout.group, right)
        formula = correctness(rewards) * (1.0 - alpha * jax.nn.sigmoid(place))
        return replace_correctness(rewards, formula, state)

    return Transform(lambda: (), apply, needs_groups=True)


def alp(*, beta: float = 0.0001, cap: float | None = 1.0, correct_only: bool = False) -> Transform:
    """C − min(beta·max(p, 1/K)·n, cap), p the share of the group's K responses that are correct:
    the easier the prompt, the more a token costs.

    Correct beats wrong at any length, if only just: at the cap a correct response is worth 0, and
    no wrong one as much. A ``cap`` below 1 leaves more between them, and None nothing.

    Args:
      beta: what a token costs where all are correct. The default is ours: the paper's 1e-7 is in
        units of its own.
      cap: the most that length costs; None for no bound, as in the paper.
      correct_only: spare the wrong ones; then ``cap`` must be below 1 for the above.

    Source: Xiang et al. 2025, arXiv 2506.05256.
    """
    check_positive("alp", beta=beta, cap=cap)

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        group, counted = rollout.group, rewards.counted
        solved = group_mean(correctness(rewards), group, counted)
        least = 1.0 / jnp.maximum(group_count(group, counted), 1.0)
        cost = beta * jnp.maximum(solved, least) * response_tokens(rollout)
        return charge(rewards, capped(cost, cap), state, correct_only=correct_only)

    return Transform(lambda: (), apply, needs_groups=True)


def grpo_lead(*, alpha: float = 0.05) -> Transform:
    """exp(−alpha·(n − μ_c)/(σ_c + 1e-6)) if correct; 0 if wrong. 1 where σ_c is 0.

    Correct beats wrong at any length. The deviation is kept to ±√m, m the correct responses, which
    none of them exceeds: so the reward is bounded by exp(alpha·√m), also for one that is not
    among them. Source: Zhang and Zuo 2025, arXiv 2504.09696; σ_c as in its code.
    """
    if not 0 < alpha <= 1:
        raise UserError(f"grpo_lead: alpha must lie in (0, 1]; got {alpha}")

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        right = rewards.correct & rewards.counted
        most = jnp.sqrt(group_count(rollout.group, right))
        place = _standardised(response_tokens(rollout), rollout.group, right)
        formula = correctness(rewards) * jnp.exp(-alpha * jnp.clip(place, -most, most))
        return replace_correctness(rewards, formula, state)

    return Transform(lambda: (), apply, needs_groups=True)


def shorter_better(
    *,
    alpha: float = 2.0,
    beta: float = 0.001,
    cap: float | None = 1.0,
    correct_only: bool = False,
) -> Transform:
    """alpha·C − min(beta·abs(n − n*), cap), n* the length of the group's shortest correct response,
    or the group's mean length where none is correct.

    Correct beats wrong at any length, as for any ``cap`` below ``alpha``, but not with None.

    Args:
      alpha: what being correct is worth.
      beta: what a token off n* costs.
      cap: the most that length costs; None for no bound, as in the paper.
      correct_only: spare the wrong ones.

    Source: Yi et al. 2025, arXiv 2504.21370.
    """
    check_positive("shorter_better", alpha=alpha, beta=beta, cap=cap)

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        lengths, group, counted = response_tokens(rollout), rollout.group, rewards.counted
        right = rewards.correct & counted
        best = jnp.where(
            group_count(group, right) > 0,
            group_min(lengths, group, right),
            group_mean(lengths, group, counted),
        )
        cost = capped(beta * jnp.abs(lengths - best), cap)
        if correct_only:
            cost = jnp.where(rewards.correct, cost, 0.0)
        return replace_correctness(rewards, alpha * correctness(rewards) - cost, state)

    return Transform(lambda: (), apply, needs_groups=True)


def drpo(budget_tokens: int, *, temperature: float = 0.1) -> Transform:
    """w if correct, 0 if wrong; w ∝ exp((1 − n/L)/temperature), with a mean of 1 over the group's
    correct responses: length moves reward among them, and none between them and the wrong.

    Correct beats wrong at any length, if by little where a much shorter one is correct too.

    Args:
      budget_tokens: L, by default the sampler's ``max_tokens``.
      temperature: the paper's λ; the smaller, the more the shortest takes.

    Source: Li et al. 2025, arXiv 2510.04474: its weights of the positive responses, as rewards.
    """
    check_positive("drpo", budget_tokens=budget_tokens, temperature=temperature)

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        lengths, group = response_tokens(rollout), rollout.group
        right = rewards.correct & rewards.counted
        longer = jnp.maximum(lengths - group_min(lengths, group, right), 0.0)
        share = jnp.exp(-longer / (budget_tokens * temperature))  # of the shortest one's weight
        mean = group_mean(share, group, right)
        weight = jnp.where(mean > 0, share / jnp.maximum(mean, 1e-6), 1.0)
        return replace_correctness(rewards, correctness(rewards) * weight, state)

    return Transform(lambda: (), apply, needs_groups=True)


def _standardised(
    lengths: Float[Array, " B"], group: Int[Array, " B"], right: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """(n − μ_c)/(σ_c + 1e-6), σ_c unbiased; 0 where it is 0."""
    std = group_std(lengths, group, right)
    return jnp.where(std > 0, (lengths - group_mean(lengths, group, right)) / (std + 1e-6), 0.0)
