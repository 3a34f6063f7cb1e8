"""What it costs to use up the budget."""

import jax.numpy as jnp

from rljax.lengths import overlong_buffer, overlong_cost
from rljax.shaping.terms import charge, check_positive
from rljax.types import Rewards, Rollout, State, Transform


def soft_overlong(
    budget_tokens: int,
    buffer_tokens: int | None = None,
    *,
    penalty: float = 1.0,
    correct_only: bool = False,
) -> Transform:
    """Subtracts penalty · clip((n − (L − buffer)) / buffer, 0, 1): from 0 to all of it over the
    last tokens of the budget L.

    Correct beats wrong at any length if ``penalty`` is below the difference between their rewards:
    not with its default and rewards of 0 and 1, where a correct response at the budget's end is
    worth what a short wrong one is; with the paper's rewards of −1 and 1 it does.

    Args:
      budget_tokens: L, by default the sampler's ``max_tokens``.
      buffer_tokens: by default a fifth of L.
      correct_only: spare the wrong ones, so that length never makes them worse.

    Metric: ``length_penalty_mean``. Source: DAPO, Yu et al. 2025, arXiv 2503.14476, eq. 13.
    """
    buffer = overlong_buffer(budget_tokens, buffer_tokens, penalty)

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        cost = overlong_cost(rollout.lengths, budget_tokens, buffer, penalty)
        return charge(rewards, cost, state, correct_only=correct_only)

    return Transform(lambda: (), apply)


def missing_eos(penalty: float = 1.0, *, correct_only: bool = False) -> Transform:
    """Subtracts ``penalty`` from a response that the budget cut off, before any of the EOS ids.

    Correct beats wrong if ``penalty`` is below the difference between their rewards, or where a
    response that was cut off cannot be correct, as ``answer_match`` has it.
    Metric: ``length_penalty_mean``. Source: TRL's ``missing_eos_penalty``; Stiennon et al. 2020,
    arXiv 2009.01325.
    """
    check_positive("missing_eos", penalty=penalty)

    def apply(rewards: Rewards, state: State, rollout: Rollout):
        cost = jnp.where(rollout.truncated, penalty, 0.0)
        return charge(rewards, cost, state, correct_only=correct_only)

    return Transform(lambda: (), apply)
