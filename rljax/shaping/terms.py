"""What the length methods have in common: how a number per response becomes part of its reward.

C is the correctness, 0 or 1. A method's formula stands in place of it: with a single reward of 0
or 1 the shaped reward is the formula, and what else a response earned stays.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from rljax.errors import UserError, nearest
from rljax.masked import masked_mean
from rljax.types import Rewards, Rollout, State


def correctness(rewards: Rewards) -> Float[Array, " B"]:
    """C."""
    return rewards.correct.astype(jnp.float32)


def response_tokens(rollout: Rollout) -> Float[Array, " B"]:
    """n, the closing EOS included."""
    return rollout.lengths.astype(jnp.float32)


def charge(rewards: Rewards, cost, state: State, *, correct_only: bool = False):
    """What a stage returns that subtracts ``cost`` [B] from the responses' rewards."""
    if correct_only:
        cost = jnp.where(rewards.correct, cost, 0.0)
    metrics = {"length_penalty_mean": masked_mean(cost, rewards.counted)}
    return rewards.replace(response=rewards.response - cost), state, metrics


def replace_correctness(rewards: Rewards, formula: Float[Array, " B"], state: State):
    """What a stage returns whose ``formula`` stands in place of C."""
    return charge(rewards, correctness(rewards) - formula, state)


def capped(term: Float[Array, " B"], cap: float | None) -> Float[Array, " B"]:
    """``term`` kept to ±cap; None for no bound."""
    return term if cap is None else jnp.clip(term, -cap, cap)


def per_prompt(method: str, value: float | str, rollout: Rollout) -> Float[Array, " B"]:
    """A number for every response: ``value`` itself, or the data column of that name."""
    if not isinstance(value, str):
        return jnp.full(rollout.group.shape, value, jnp.float32)
    if value not in rollout.extras:
        raise UserError(
            f'{method}: the data has no column "{value}"; {nearest(value, rollout.extras)}, '
            "or give a number"
        )
    column = rollout.extras[value]
    if column.ndim != 1 or not jnp.issubdtype(column.dtype, jnp.number):
        raise UserError(f'{method}: the data column "{value}" must hold a number for every prompt')
    return column.astype(jnp.float32)


def check_positive(method: str, **values: float | str | None) -> None:
    """Raises ``UserError`` unless every number is positive and finite; names and None pass."""
    for name, value in values.items():
        if isinstance(value, int | float) and not 0 < value < math.inf:
            raise UserError(f"{method}: {name} must be positive; got {value}")
