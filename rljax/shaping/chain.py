"""Transforms of the rewards, composed in order."""

import jax.numpy as jnp

from rljax.errors import UserError, reason
from rljax.types import Metrics, Rewards, Rollout, State, Transform


def chain(**stages: Transform) -> Transform:
    """Applies named stages one after another; the state is a dict by their names.

    Metrics: ``reward_mean`` (raw), ``reward_shaped_mean``, ``accuracy`` (the share of correct
    responses), ``reward_shaping_ratio`` = Σ|s| / (Σ|r| + Σ|s|), with r a response's raw reward and
    s all that shaping added to it; and those of the stages, a name that is taken already prefixed
    by the stage's.
    """

    def init() -> State:
        return {name: stage.init() for name, stage in stages.items()}

    def apply(rewards: Rewards, state: State, rollout: Rollout) -> tuple[Rewards, State, Metrics]:
        new_state, collected = {}, []
        for name, stage in stages.items():
            rewards, new_state[name], stage_metrics = _apply(
                name, stage, rewards, state[name], rollout
            )
            collected.append((name, stage_metrics))
        shaping = jnp.abs(rewards.shaped - rewards.raw).sum()
        total = jnp.abs(rewards.raw).sum() + shaping
        metrics = {
            "reward_mean": rewards.raw.mean(),
            "reward_shaped_mean": rewards.shaped.mean(),
            "accuracy": rewards.correct.mean(),
            "reward_shaping_ratio": jnp.where(total > 0, shaping / jnp.maximum(total, 1e-8), 0.0),
        }
        for name, stage_metrics in collected:
            metrics |= {
                f"{name}/{key}" if key in metrics else key: value
                for key, value in stage_metrics.items()
            }
        return rewards, new_state, metrics

    return Transform(init, apply, any(stage.needs_reference for stage in stages.values()))


def _apply(name: str, stage: Transform, rewards: Rewards, state: State, rollout: Rollout):
    """``stage.apply``, its faults told in terms of the stage."""
    try:
        shaped, new_state, metrics = stage.apply(rewards, state, rollout)
        shapes = (shaped.response.shape, shaped.token.shape)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'shaping stage "{name}" {reason(error)}') from error
    expected = (rewards.response.shape, rewards.token.shape)
    if shapes != expected:
        raise UserError(
            f'shaping stage "{name}" must keep the shapes of response and token, {expected}; '
            f"it returned {shapes}"
        )
    return shaped, new_state, metrics
