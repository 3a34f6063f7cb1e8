"""Several rewards as one, each measured by its name."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from rljax.errors import UserError, reason
from rljax.types import Reward, Rollout, Score


def weighted_sum(rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> Score:
    """Σ weight · reward, with the mean and std of each, and how many values were not finite.

    A response is correct if the *first* reward, before its weight, is above one half.

    Args:
      rewards: functions of a rollout, by name, each returning one number per response.
      weights: by the same names; 1 where a name is missing.

    Raises:
      UserError: (when traced) a reward raises, or returns another shape than [B].
    """

    def score(rollout: Rollout):
        total = jnp.zeros(rollout.tokens.shape[0])
        metrics, correct = {}, None
        for name, reward in rewards.items():
            values = _call(name, reward, rollout)
            correct = values > 0.5 if correct is None else correct
            metrics[f"rewards/{name}/mean"] = values.mean()
            metrics[f"rewards/{name}/std"] = values.std()
            metrics[f"rewards/{name}/nonfinite"] = (~jnp.isfinite(values)).sum()
            total += weights.get(name, 1.0) * values
        return total, correct, metrics

    return score


def _call(name: str, reward: Reward, rollout: Rollout) -> Float[Array, " B"]:
    try:
        values = jnp.asarray(reward(rollout), jnp.float32)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'reward "{name}" {reason(error)}') from error
    rows = rollout.tokens.shape[0]
    if values.shape != (rows,):
        raise UserError(
            f'reward "{name}" must return one number per response, shape ({rows},); '
            f"it returned shape {values.shape}"
        )
    return values
