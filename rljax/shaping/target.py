"""Length measured against a target or the budget: each response by itself.

n is a response's length in tokens, C its correctness (0 or 1), L the budget. A target is a number
of tokens, or the name of a data column with one for each prompt. Every formula stands in place of
C, and the metric ``length_penalty_mean`` is the mean of what it took away, C − formula.
"""

import jax.numpy as jnp

from rljax.errors import UserError
from rljax.shaping.terms import (
    capped,
    charge,
    check_positive,
    correctness,
    per_prompt,
    replace_correctness,
    response_tokens,
)
from rljax.types import Rewards, Rollout, State, Transform


def cosine(
    budget_tokens: int,
    *,
    correct_short: float = 1.0,
    correct_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
) -> Transform:
    """long + ½(short − long)·(1 + cos(π·min(n/L, 1))): a correct response earns the less the longer
    it is, and a wrong one the more.

    Correct beats wrong at any length; other values must keep it so. The four values are ours: the
    paper has 2, 1, −10 and 0, with other rewards beside them.

    Args:
      budget_tokens: L, by default the sampler's ``max_tokens``.
      correct_short, correct_long, wrong_short, wrong_long: the reward at n = 0 and from L on.

    Source: Yeo et al. 2025, arXiv 2502.03373.
    """
    check_positive("cosine", budget_tokens=budget_tokens)
    if not min(correct_short, correct_long) > max(wrong_short, wrong_long):
        raise UserError(
            "cosine: a correct response must earn more than a wrong one at any length; got "
            f"correct {correct_short} to {correct_long}, wrong {wrong_short} to {wrong_long}"
        )

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        used = jnp.minimum(response_tokens(rollout) / budget_tokens, 1.0)
        share = 0.5 * (1.0 + jnp.cos(jnp.pi * used))
        short = jnp.where(rewards.correct, correct_short, wrong_short)
        long = jnp.where(rewards.correct, correct_long, wrong_long)
        return replace_correctness(rewards, long + (short - long) * share, state)

    return Transform(lambda: (), apply)


def l1_exact(
    target: int | str = "target_tokens",
    *,
    alpha: float = 0.0003,
    cap: float | None = 1.0,
    correct_only: bool = False,
) -> Transform:
    """C − min(alpha·abs(n* − n), cap), n* the target.

    Correct beats wrong at any length if ``cap`` is below 1: not with its default, where a correct
    response far off is worth what a wrong one on target is.

    Args:
      target: n*, tokens.
      alpha: what a token off the target costs.
      cap: the most that length costs; None for no bound, as in the paper.
      correct_only: spare the wrong ones.

    Source: Aggarwal and Welleck 2025, arXiv 2503.04697, eq. 1.
    """
    check_positive("l1_exact", target=target, alpha=alpha, cap=cap)

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        away = jnp.abs(per_prompt("l1_exact", target, rollout) - response_tokens(rollout))
        return charge(rewards, capped(alpha * away, cap), state, correct_only=correct_only)

    return Transform(lambda: (), apply)


def l1_max(
    target: int | str = "target_tokens", *, alpha: float = 0.0003, delta: float = 0.5
) -> Transform:
    """C·clip(alpha·(n* − n) + delta, 0, 1), n* the target.

    Correct beats wrong as long as alpha·(n − n*) is below ``delta``, and so at any length if
    alpha·(L − n*) is; beyond, with the defaults at 1667 tokens too many, both are worth 0.

    Args:
      target: n*, tokens.
      alpha: what a token costs a correct response.
      delta: what a correct response on target earns.

    Source: Aggarwal and Welleck 2025, arXiv 2503.04697, eq. 2.
    """
    check_positive("l1_max", target=target, alpha=alpha, delta=delta)

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        left = per_prompt("l1_max", target, rollout) - response_tokens(rollout)
        share = jnp.clip(alpha * left + delta, 0.0, 1.0)
        return replace_correctness(rewards, correctness(rewards) * share, state)

    return Transform(lambda: (), apply)


def laser(target: int | str = "target_tokens", *, alpha: float = 0.5) -> Transform:
    """C + alpha·C·1[n ≤ target]: a bonus for a correct response within the target.

    Correct beats wrong at any length. Source: Liu et al. 2025, arXiv 2505.15612.
    """
    check_positive("laser", target=target, alpha=alpha)

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        within = response_tokens(rollout) <= per_prompt("laser", target, rollout)
        return replace_correctness(rewards, correctness(rewards) * (1.0 + alpha * within), state)

    return Transform(lambda: (), apply)


def o1_pruner(
    *,
    reference_tokens: float | str = "reference_tokens",
    reference_accuracy: float | str = "reference_accuracy",
    accuracy_weight: float = 2.0,
    cap: float | None = 1.0,
    correct_only: bool = False,
) -> Transform:
    """clip(n̄/n − 1, ±cap) + accuracy_weight·(C − Ā), where n̄ and Ā are the mean length and the
    accuracy of the reference model's responses to the prompt.

    Correct beats wrong at any length, as for any ``cap`` up to half of ``accuracy_weight``; with
    no bound, a wrong response that is short enough is worth more than any correct one.

    Args:
      reference_tokens, reference_accuracy: n̄ and Ā, each a number or a data column.
      accuracy_weight: what being correct is worth; the paper's λ.
      cap: the most that length gains or costs; None for no bound, as in the paper.
      correct_only: length concerns the correct ones alone.

    Source: Luo et al. 2025, arXiv 2501.12570; the weight as in its Marco-o1.
    """
    check_positive(
        "o1_pruner", reference_tokens=reference_tokens, accuracy_weight=accuracy_weight, cap=cap
    )
    if not isinstance(reference_accuracy, str) and not 0 <= reference_accuracy <= 1:
        raise UserError(
            f"o1_pruner: reference_accuracy must lie in [0, 1]; got {reference_accuracy}"
        )

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        tokens = per_prompt("o1_pruner", reference_tokens, rollout)
        accuracy = per_prompt("o1_pruner", reference_accuracy, rollout)
        term = capped(tokens / jnp.maximum(response_tokens(rollout), 1.0) - 1.0, cap)
        if correct_only:
            term = jnp.where(rewards.correct, term, 0.0)
        formula = term + accuracy_weight * (correctness(rewards) - accuracy)
        return replace_correctness(rewards, formula, state)

    return Transform(lambda: (), apply)
