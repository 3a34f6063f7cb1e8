"""Length measured against what earlier batches were like: methods with a carried state.

n is a response's length in tokens, C its correctness (0 or 1). Every batch is shaped by the state
before it, and then moves it, by its responses that count; a batch without any leaves it alone.
Every formula stands in place of C, and the metric ``length_penalty_mean`` is the mean of what it
took away, C − formula.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rljax.errors import UserError
from rljax.grouped import group_count, group_sum
from rljax.masked import masked_mean
from rljax.shaping.terms import (
    capped,
    charge,
    check_positive,
    correctness,
    replace_correctness,
    response_tokens,
)
from rljax.types import ROW, UNSEEN, Rewards, Rollout, Transform

NO_HISTORY = np.iinfo(np.int32).max  # the shortest correct response where there was none


class Targets(NamedTuple):
    """In tokens, for the prompts that are easy, medium and hard."""

    easy_tokens: Float[Array, ""]
    medium_tokens: Float[Array, ""]
    hard_tokens: Float[Array, ""]


def laser_d(
    budget_tokens: int,
    *,
    alpha: float = 0.5,
    easy: float = 2 / 3,
    medium: float = 1 / 3,
    decay: float = 0.9,
) -> Transform:
    """C + alpha·C·1[n ≤ target], with a target for each class of prompts, by how many of the
    group's responses are correct.

    A batch's target for a class is the shortest length l for which Pr(n ≤ l)·m ≥ 1 among the
    class's responses, right and wrong, where m, at least 1, is how many correct ones the class
    promises: its share of the largest group, rounded down. The target carried is a running mean of
    these, which starts at the budget, and applies rounded.

    Correct beats wrong at any length.

    Args:
      budget_tokens: by default the sampler's ``max_tokens``.
      alpha: the bonus for a correct response within the target.
      easy, medium: a prompt is of the class from this share of correct responses on, else hard.
      decay: what of the target before a batch remains after it. Ours: the paper measures anew, on
        prompts set aside.

    Source: Liu et al. 2025, arXiv 2505.15612; the classes as in its code.
    """
    check_positive("laser_d", budget_tokens=budget_tokens, alpha=alpha)
    if not (0 < medium < easy <= 1 and 0 <= decay < 1):
        raise UserError(
            "laser_d: needs 0 < medium < easy <= 1 and 0 <= decay < 1; "
            f"got medium={medium}, easy={easy}, decay={decay}"
        )

    def apply(rewards: Rewards, state: Targets, rollout: Rollout):
        lengths, counted = response_tokens(rollout), rewards.counted
        size = group_count(rollout.group, counted)
        solved = group_sum(correctness(rewards), rollout.group, counted) + 1e-3  # not by rounding
        is_easy = solved >= easy * size
        is_medium = ~is_easy & (solved >= medium * size)
        classes = Targets(is_easy, is_medium, ~is_easy & ~is_medium)

        def follow(before, of_class, share):
            rows = counted & of_class
            promised = jnp.maximum(jnp.floor(share * size.max() + 1e-3), 1.0)
            return jnp.where(
                rows.any(),
                before + (1.0 - decay) * (_covering(lengths, rows, promised) - before),
                before,
            )

        target = jnp.select(classes, state)
        formula = correctness(rewards) * (1.0 + alpha * (lengths <= jnp.round(target)))
        moved = Targets(*map(follow, state, classes, (easy, medium, 0.0)))
        return replace_correctness(rewards, formula, moved)

    def init() -> Targets:
        return Targets(*(jnp.float32(budget_tokens) for _ in Targets._fields))

    return Transform(init, apply, needs_groups=True)


def _covering(
    lengths: Float[Array, " B"], rows: Bool[Array, " B"], promised: Float[Array, ""]
) -> Float[Array, ""]:
    """The shortest length that at least one in ``promised`` of the rows does not exceed."""
    needed = jnp.ceil(rows.sum() / promised - 1e-3).astype(jnp.int32)
    return jnp.sort(jnp.where(rows, lengths, jnp.inf))[jnp.maximum(needed - 1, 0)]


class Price(NamedTuple):
    weight: Float[Array, ""]  # of a token


def a_dlp(
    target_accuracy: float,
    *,
    weight: float = 0.001,
    rate: float = 0.001,
    max_weight: float = 0.01,
    cap: float | None = 1.0,
    correct_only: bool = False,
) -> Transform:
    """C − min(w·n, cap); then w ← clip(w + rate·(accuracy − target_accuracy), 0, max_weight).

    Correct beats wrong at any length, if only just: at the cap a correct response is worth 0, and
    no wrong one as much. A ``cap`` below 1 leaves more between them, and None nothing.

    Args:
      target_accuracy: while the batch's is above, tokens grow dearer, and cheaper while below; the
        paper takes the accuracy that training begins with.
      weight: w of the first batch, what a token costs.
      rate: what a batch that is right throughout adds to w if the target is 0.
      max_weight: the bound on w is ours.
      cap: the most that length costs; None for no bound, as in the paper.
      correct_only: spare the wrong ones; then ``cap`` must be below 1 for the above.

    Source: Su and Cardie 2025, arXiv 2505.18298; weight and rate as in its code.
    """
    check_positive("a_dlp", weight=weight, rate=rate, max_weight=max_weight, cap=cap)
    if not 0 <= target_accuracy <= 1 or weight > max_weight:
        raise UserError(
            "a_dlp: needs target_accuracy in [0, 1] and weight <= max_weight; "
            f"got {target_accuracy}, {weight}, {max_weight}"
        )

    def apply(rewards: Rewards, state: Price, rollout: Rollout):
        counted = rewards.counted
        cost = capped(state.weight * response_tokens(rollout), cap)
        gap = masked_mean(correctness(rewards), counted) - target_accuracy
        moved = jnp.clip(state.weight + rate * gap, 0.0, max_weight)
        new_state = Price(jnp.where(counted.any(), moved, state.weight))
        return charge(rewards, cost, new_state, correct_only=correct_only)

    return Transform(lambda: Price(jnp.float32(weight)), apply)


class History(NamedTuple):
    shortest_tokens: Int[Array, " N"]  # the shortest correct response so far, by training prompt


def hapo(train_prompts: int, *, weight: float = 1.0) -> Transform:
    """C + weight·max(f, −0.7) if correct, weight·min(f, 0) if wrong; f = cos(min(½π·n/h, π)), h the
    length of the shortest correct response to the prompt in the batches before.

    Without such a response, and for prompts that are no training data, C stays as it is. Correct
    beats wrong at any length.

    Args:
      train_prompts: how many there are; the run knows.
      weight: what length is worth, at most 1.

    Metrics: ``length_penalty_mean``, and ``length_history_ratio``, the share of the responses whose
    prompt has an h. Source: Huang et al. 2025, arXiv 2505.11225.
    """
    check_positive("hapo", train_prompts=train_prompts)
    if not 0 < weight <= 1:
        raise UserError(f"hapo: weight must lie in (0, 1]; got {weight}")

    def apply(rewards: Rewards, state: History, rollout: Rollout):
        if ROW not in rollout.extras:
            raise UserError(f'hapo: the prompts lack the column "{ROW}", which a run adds to them')
        row, counted = rollout.extras[ROW], rewards.counted
        at = jnp.where(row == UNSEEN, train_prompts, row)  # out of range: neither read nor written
        best = state.shortest_tokens.at[at].get(mode="fill", fill_value=NO_HISTORY)
        known = best < NO_HISTORY
        used = response_tokens(rollout) / jnp.maximum(best, 1)
        f = jnp.cos(jnp.minimum(0.5 * jnp.pi * used, jnp.pi))
        bounded = jnp.where(rewards.correct, jnp.maximum(f, -0.7), jnp.minimum(f, 0.0))
        formula = correctness(rewards) + jnp.where(known, weight * bounded, 0.0)
        offered = jnp.where(rewards.correct & counted, rollout.lengths, NO_HISTORY)
        shortest = state.shortest_tokens.at[at].min(offered, mode="drop")
        shaped, new_state, metrics = replace_correctness(rewards, formula, History(shortest))
        metrics["length_history_ratio"] = masked_mean(known.astype(jnp.float32), counted)
        return shaped, new_state, metrics

    return Transform(lambda: History(jnp.full(train_prompts, NO_HISTORY, jnp.int32)), apply)
