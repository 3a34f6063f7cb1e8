"""Controllers: coefficients that adapt to what a run measures, their state in the TrainState.

``length_band``, ``kl_penalty`` and an algorithm's ``kl_coef`` take one in place of a number.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rljax.errors import UserError
from rljax.types import Controller, State


class Adaptive(NamedTuple):
    value: Float[Array, ""]


class Drift(NamedTuple):
    value: Float[Array, ""]
    level: Int[Array, ""]  # how many moves away from the start
    streak: Int[Array, ""]  # batches in a row: overlong counted up, calm counted down
    changes: Int[Array, ""]  # how often the value has moved


def fixed(value: float) -> Controller:
    """A coefficient that stays as it is, and keeps no state. It must not be negative."""
    if value < 0:
        raise UserError(f"a coefficient must not be negative; got {value}")
    return Controller(
        init=lambda: (), value=lambda _: jnp.float32(value), update=lambda state, *_: state
    )


def adaptive_kl(
    start: float = 0.001, *, target: float = 0.1, horizon: float = 10_000
) -> Controller:
    """β ← β·(1 + clip(KL/target − 1, ±0.2)·rows/horizon); ``horizon`` is in responses.

    Source: Ziegler et al. 2019, arXiv 1909.08593, section 2.2.
    """
    if start <= 0 or target <= 0 or horizon <= 0:
        raise UserError("adaptive_kl: start, target and horizon must be positive")

    def update(state: Adaptive, kl, rows) -> Adaptive:
        error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
        return Adaptive(state.value * (1.0 + error * rows / horizon))

    return Controller(lambda: Adaptive(jnp.float32(start)), lambda state: state.value, update)


def drift(start: float, *, limit: float, factor: float, window: int = 3) -> Controller:
    """Moves from ``start`` towards ``limit`` by ``factor`` when ``window`` batches in a row run
    overlong (measured > 0), and back by the same factor when as many in a row do not.

    For a weight take factor > 1 and limit > start; for a maximum length factor < 1 and
    limit < start. Raises ``UserError`` if the two disagree.
    """
    positive = min(start, limit, factor) > 0
    moves = factor != 1 and limit != start and (factor > 1) == (limit > start)
    if window < 1 or not positive or not moves:
        raise UserError(
            "drift: needs window >= 1, start and limit > 0, and limit on the side of start that "
            f"factor moves to; got start={start}, limit={limit}, factor={factor}, window={window}"
        )
    levels = math.ceil(math.log(limit / start) / math.log(factor) - 1e-6)

    def init() -> Drift:
        return Drift(jnp.float32(start), jnp.int32(0), jnp.int32(0), jnp.int32(0))

    def update(state: Drift, excess, rows) -> Drift:
        del rows
        run_up, run_down = jnp.maximum(state.streak, 0) + 1, jnp.minimum(state.streak, 0) - 1
        streak = jnp.where(excess > 0, run_up, run_down)
        tighten, relax = streak >= window, streak <= -window
        level = jnp.clip(state.level + tighten - relax, 0, levels)
        return Drift(
            value=jnp.where(level == levels, limit, start * factor ** level.astype(jnp.float32)),
            level=level,
            streak=jnp.where(tighten | relax, 0, streak),
            changes=state.changes + (level != state.level),
        )

    return Controller(init, lambda state: state.value, update)


def follow(
    control: Controller, state: State, measured: Float[Array, ""], counted: Bool[Array, " B"]
) -> State:
    """The controller's state after a batch; as it was if no response of it counted."""
    moved = control.update(state, measured, counted.sum())
    return jax.tree.map(lambda new, old: jnp.where(counted.any(), new, old), moved, state)


def as_controller(coefficient: float | Controller) -> Controller:
    """A controller as it is, a number as a fixed one."""
    if isinstance(coefficient, Controller):
        return coefficient
    if not isinstance(coefficient, int | float):
        raise UserError(
            "a coefficient must be a number or a controller such as drift, "
            f"not a {type(coefficient).__name__}"
        )
    return fixed(coefficient)
