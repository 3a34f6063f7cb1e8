"""Several rewards as one, each measured by its name."""

from collections.abc import Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float

from rljax.errors import UserError, reason
from rljax.masked import masked_mean
from rljax.types import PYTHON_REWARD, Reward, Rollout, Score, Scored


def weighted_sum(
    rewards: Mapping[str, Reward],
    weights: Mapping[str, float],
    instead: Mapping[str, float] = MappingProxyType({}),
) -> Score:
    """Σ weight · reward, with the mean and std of each, and how many values were not finite.

    A response is correct if the *first* reward, before its weight, is above one half. Where a
    reward in Python failed, the response is not counted, unless the reward is named in
    ``instead``; where it does not apply, the response gets nothing from it, and is not counted if
    no other reward applies. Neither enters the reward's mean and std.

    Args:
      rewards: functions of a rollout, by name, each returning one number per response.
      weights: by the same names; 1 where a name is missing.
      instead: what a reward in Python is worth where it failed, by its name.

    Raises:
      UserError: (when traced) a reward raises, or returns another shape than [B].
    """

    def score(rollout: Rollout):
        total = jnp.zeros(rollout.tokens.shape[0])
        counted, judged = jnp.ones(total.shape, bool), jnp.zeros(total.shape, bool)
        metrics, each, correct = {}, {}, None
        for name, reward in rewards.items():
            values = _call(name, reward, rollout)
            measured = ~rollout.greedy
            if PYTHON_REWARD + name in rollout.extras:
                failed, given = jnp.isnan(values), jnp.isfinite(values)
                metrics[f"rewards/{name}/failed"] = failed.sum()
                if name in instead:
                    values = jnp.where(failed, instead[name], values)
                else:
                    counted &= ~failed
                applies = ~jnp.isneginf(values)
                metrics[f"rewards/{name}/not_applicable"] = (~applies).sum()
                measured &= given
                judged |= applies
                values = jnp.where(jnp.isfinite(values), values, 0.0)
            else:
                judged |= True
            correct = values > 0.5 if correct is None else correct
            mean = masked_mean(values, measured)
            metrics[f"rewards/{name}/mean"] = mean
            metrics[f"rewards/{name}/std"] = jnp.sqrt(
                masked_mean(jnp.square(values - mean), measured)
            )
            metrics[f"rewards/{name}/nonfinite"] = (~jnp.isfinite(values)).sum()
            each[name] = values
            total += weights.get(name, 1.0) * values
        return Scored(total, correct, counted & judged, metrics, each)

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
