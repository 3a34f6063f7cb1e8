"""A length band whose upper edge starts at the budget and closes in while the answers are right."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax.errors import UserError
from rljax.masked import masked_mean
from rljax.types import Controller, Transform


class Edge(NamedTuple):
    max_tokens: jax.Array  # a float32, the longest response that is still free


def smooth_band(
    min_tokens: int,
    max_tokens: int,
    budget_tokens: int,
    *,
    weight: float = 0.3,
    knee_below: float = 5.0,
    knee_above: float = 10.0,
    step_tokens: float = 8.0,
    least_accuracy: float = 0.5,
) -> Transform:
    """Subtracts weight · h(d / knee), d the tokens outside the band.

    h is Huber's function, ½u² up to 1 and u − ½ from there: level at the band's edge, and a
    straight line far off, where every further token costs as much as the one before. A short
    response is judged by ``knee_below``, a long one by ``knee_above``. The upper edge starts at the
    budget, where nothing is too long, and comes down to ``max_tokens``; it waits while the answers
    are wrong.

    Correct beats wrong while weight · h is below the difference between their rewards.

    Args:
      min_tokens, max_tokens, budget_tokens: by default those of the run.
      weight: in units of the reward.
      knee_below, knee_above: the tokens outside the band from which the cost is a straight line.
      step_tokens: by how much the edge comes down after a batch. Too slow, and the policy has given
        up on short responses before long ones cost anything.
      least_accuracy: the share of the batch's responses that must be correct for that.

    Returns the metric ``length_penalty_mean``.
    """
    if not 0 <= min_tokens <= max_tokens <= budget_tokens:
        raise UserError(
            "smooth_band: needs 0 <= min_tokens <= max_tokens <= budget_tokens; "
            f"got {min_tokens}, {max_tokens}, {budget_tokens}"
        )
    if weight < 0 or min(knee_below, knee_above) <= 0:
        raise UserError(
            "smooth_band: needs weight >= 0, knee_below > 0 and knee_above > 0; "
            f"got {weight}, {knee_below}, {knee_above}"
        )
    edge = closing(
        budget_tokens, max_tokens, step_tokens=step_tokens, least_accuracy=least_accuracy
    )

    def apply(rewards, state: Edge, rollout):
        lengths, counted = rollout.lengths, rewards.counted
        highest = edge.value(state)
        below = jnp.maximum(min_tokens - lengths, 0)
        above = jnp.maximum(lengths - highest, 0)
        cost = weight * (huber(below / knee_below) + huber(above / knee_above))
        accuracy = masked_mean(rewards.correct.astype(jnp.float32), counted)
        shaped = rewards.replace(response=rewards.response - cost)
        metrics = {"length_penalty_mean": masked_mean(cost, counted)}
        return shaped, edge.update(state, accuracy, counted.sum()), metrics

    return Transform(edge.init, apply)


def closing(start: float, end: float, *, step_tokens: float, least_accuracy: float) -> Controller:
    """From ``start`` down to ``end``, by ``step_tokens`` after each batch that is right enough.

    Its state is a leaf of the TrainState, so that a run which goes on has the edge where it was.
    """
    if step_tokens <= 0 or not 0 <= least_accuracy <= 1:
        raise UserError(
            "smooth_band: needs step_tokens > 0 and 0 <= least_accuracy <= 1; "
            f"got {step_tokens}, {least_accuracy}"
        )

    def update(state: Edge, accuracy, rows) -> Edge:
        lower = jnp.maximum(state.max_tokens - step_tokens, end)
        # A batch of which nothing is learned says nothing.
        moves = (rows > 0) & (accuracy >= least_accuracy)
        return Edge(jnp.where(moves, lower, state.max_tokens))

    return Controller(lambda: Edge(jnp.float32(start)), lambda state: state.max_tokens, update)


def huber(u):
    """½u² up to 1, then u − ½; u is not negative."""
    return jnp.where(u <= 1.0, 0.5 * jnp.square(u), u - 0.5)
