"""The optimizer of a trained role, from optax."""

import math
from typing import Literal

import optax

from rljax.errors import UserError


def adamw(
    total_steps: int,
    updates_per_step: int,
    /,
    *,
    learning_rate: float,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
    warmup_steps: int = 0,
    final_fraction: float | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    clip_norm: float | None = 1.0,
    mu_dtype: Literal["float32", "bfloat16"] = "float32",
) -> optax.GradientTransformation:
    """AdamW behind a clip of the gradient's global norm.

    The rate rises from 0 over ``warmup_steps`` train steps; unless it is constant, it then falls to
    ``final_fraction`` of its peak, by default a tenth, at ``total_steps``. Steps are train steps,
    of ``updates_per_step`` optimizer updates each. ``mu_dtype`` is of the first moment; the second
    is in float32, as bfloat16 would lose its small steps.
    """
    if schedule == "constant" and final_fraction is not None:
        raise UserError("adamw: final_fraction is of a falling schedule; this one is constant")
    final_fraction = 0.1 if final_fraction is None else final_fraction
    if not 0 < learning_rate < math.inf:
        raise UserError(f"adamw: needs learning_rate > 0, got {learning_rate}")
    if not 0 <= warmup_steps <= total_steps:
        raise UserError(
            f"adamw: needs 0 <= warmup_steps <= steps; warmup_steps is {warmup_steps}, of "
            f"{total_steps} steps"
        )
    if total_steps * updates_per_step >= 2**31:
        raise UserError(
            f"adamw: {total_steps:,} steps of {updates_per_step:,} updates are too many to count"
        )
    if not (0 <= b1 < 1 and 0 <= b2 < 1 and eps > 0):
        raise UserError(f"adamw: needs b1 and b2 in [0, 1) and eps > 0; got {b1}, {b2}, {eps}")
    if min(weight_decay, final_fraction) < 0 or (clip_norm is not None and clip_norm <= 0):
        raise UserError(
            "adamw: needs weight_decay and final_fraction >= 0, and clip_norm > 0 or null; "
            f"got {weight_decay}, {final_fraction}, {clip_norm}"
        )
    warmup, decay = warmup_steps * updates_per_step, (total_steps - warmup_steps) * updates_per_step
    falling = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "linear": lambda: optax.linear_schedule(
            learning_rate, final_fraction * learning_rate, max(decay, 1)
        ),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, max(decay, 1), final_fraction),
    }[schedule]()
    rising = optax.linear_schedule(0.0, learning_rate, max(warmup, 1))
    rate = optax.join_schedules([rising, falling], [warmup])
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(
        clip, optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mu_dtype=mu_dtype)
    )
