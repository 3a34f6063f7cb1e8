"""Transforms of the rewards, composed in order."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from rljax.errors import UserError, reason
from rljax.masked import masked_mean, masked_sum
from rljax.types import Metrics, Rewards, Rollout, State, Transform


def chain(**stages: Transform) -> Transform:
    """Applies named stages one after another; the state is a dict by their names.

    Metrics: the ``reward_figures``, of the responses that counted before the first stage, and those
    of the stages, a name that is taken already prefixed by the stage's.
    """

    def init() -> State:
        return {name: stage.init() for name, stage in stages.items()}

    def apply(rewards: Rewards, state: State, rollout: Rollout) -> tuple[Rewards, State, Metrics]:
        measured = rewards.counted
        new_state, collected = {}, []
        for name, stage in stages.items():
            rewards, new_state[name], stage_metrics = _apply(
                name, stage, rewards, state[name], rollout
            )
            collected.append((name, stage_metrics))
        metrics = reward_figures(rewards, measured, ~rollout.greedy)
        for name, stage_metrics in collected:
            metrics |= {
                f"{name}/{key}" if key in metrics else key: value
                for key, value in stage_metrics.items()
            }
        return rewards, new_state, metrics

    return Transform(
        init,
        apply,
        needs_reference=any(stage.needs_reference for stage in stages.values()),
        needs_groups=any(stage.needs_groups for stage in stages.values()),
    )


def reward_figures(
    rewards: Rewards, measured: Bool[Array, " B"], drawn: Bool[Array, " B"]
) -> Metrics:
    """What is said of shaped rewards as a whole.

    Over the responses that are ``measured``: ``reward_mean`` (raw), ``reward_shaped_mean``,
    ``accuracy`` (the share of correct responses) and ``reward_shaping_ratio`` =
    Σ|s| / (Σ|r| + Σ|s|), with r a response's raw reward and s all that shaping added to it. Over
    all that were ``drawn`` to be learned from: ``left_out_ratio``, the share that is not.
    """
    shaping = masked_sum(jnp.abs(rewards.shaped - rewards.raw), measured)
    total = masked_sum(jnp.abs(rewards.raw), measured) + shaping
    return {
        "reward_mean": masked_mean(rewards.raw, measured),
        "reward_shaped_mean": masked_mean(rewards.shaped, measured),
        "accuracy": masked_mean(rewards.correct.astype(jnp.float32), measured),
        "left_out_ratio": masked_mean((~rewards.counted).astype(jnp.float32), drawn),
        "reward_shaping_ratio": jnp.where(total > 0, shaping / jnp.maximum(total, 1e-8), 0.0),
    }


def _apply(name: str, stage: Transform, rewards: Rewards, state: State, rollout: Rollout):
    """``stage.apply``, its faults told in terms of the stage."""
    try:
        shaped, new_state, metrics = stage.apply(rewards, state, rollout)
        shapes = (shaped.response.shape, shaped.token.shape, shaped.counted.shape)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'shaping stage "{name}" {reason(error)}') from error
    expected = (rewards.response.shape, rewards.token.shape, rewards.counted.shape)
    if shapes != expected:
        raise UserError(
            f'shaping stage "{name}" must keep the shapes of response, token and counted, '
            f"{expected}; it returned {shapes}"
        )
    return shaped, new_state, metrics
