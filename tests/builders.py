"""Rollouts small enough to work out by hand."""

import jax.numpy as jnp
import numpy as np
from hypothesis import settings

from rljax.types import Evidence, Rewards, Rollout

# The same few examples in every run, so that a failure is never a matter of luck.
few = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def make_rollout(lengths, *, prompt=2, budget=6, truncated=None, extras=None, **columns) -> Rollout:
    """Rows with ``prompt`` columns, then responses of the given ``lengths``, then padding.

    ``columns`` are Rollout fields given as [B, T] lists, such as ``values``.
    """
    at = np.arange(prompt + budget)
    ends = prompt + np.asarray(lengths)[:, None]
    mask, action_mask = at < ends, (at >= prompt) & (at < ends)
    rows = len(lengths)
    fields = {
        "tokens": jnp.where(mask, 5, 0),
        "mask": jnp.asarray(mask),
        "action_mask": jnp.asarray(action_mask),
        "logprobs": jnp.zeros(mask.shape),
        "truncated": jnp.asarray([False] * rows if truncated is None else truncated),
        "greedy": jnp.zeros(rows, bool),
        "group": jnp.arange(rows),
        "extras": extras or {},
    }
    return Rollout(**fields | {name: jnp.asarray(value) for name, value in columns.items()})


def make_rewards(rollout: Rollout, raw) -> Rewards:
    """Rewards as the task gave them, before any shaping."""
    raw = jnp.asarray(raw, jnp.float32)
    return Rewards(
        raw=raw,
        correct=raw > 0.5,
        counted=~rollout.greedy,
        response=raw,
        token=jnp.zeros(rollout.tokens.shape),
    )


def pad_columns(x, left: int, right: int, value=0):
    """[B, T] with columns of ``value`` on both sides."""
    return jnp.pad(x, [(0, 0), (left, right)], constant_values=value)


def no_evidence() -> Evidence:
    """Of a row of which nothing was seen."""
    return Evidence(
        tokens=jnp.zeros((1, 1), jnp.int32),
        mask=jnp.ones((1, 1), bool),
        action_mask=jnp.ones((1, 1), bool),
        logprobs=None,
        bad={},
        column=jnp.full(1, -1),
        figures={},
        source={},
        learned=jnp.zeros(1, jnp.int32),
    )
