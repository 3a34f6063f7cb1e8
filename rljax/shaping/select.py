"""Which responses are learned from."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rljax.grouped import group_count, group_max, group_min
from rljax.masked import masked_mean
from rljax.types import Rollout, State, Transform


def overlong_filter() -> Transform:
    """Leaves out the responses that the budget cut off: they have no loss, and do not enter the
    statistics of their group.

    Source: DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.4.
    """

    def apply(rewards, state: State, rollout: Rollout):
        return rewards.replace(counted=rewards.counted & ~rollout.truncated), state, {}

    return Transform(lambda: (), apply)


def informative(
    raw: Float[Array, " B"], group: Int[Array, " B"], counted: Bool[Array, " B"]
) -> Bool[Array, " B"]:
    """Whether the raw rewards of a response's group differ, so that there is something to learn."""
    return group_max(raw, group, counted) > group_min(raw, group, counted)


def alike_ratio(
    raw: Float[Array, " B"], group: Int[Array, " B"], counted: Bool[Array, " B"]
) -> Float[Array, ""]:
    """The share of the groups whose responses all earned the same raw reward; 0 without any."""
    alike = ~informative(raw, group, counted)
    each = jnp.where(counted, 1.0 / jnp.maximum(group_count(group, counted), 1.0), 0.0)
    return jnp.sum(each * alike) / jnp.maximum(jnp.sum(each), 1.0)


def informative_groups() -> Transform:
    """Leaves out the groups whose responses all earned the same *raw* reward, however shaping
    told them apart: dynamic sampling's filter.

    Metric: ``informative_ratio``, the share of the responses that are in other groups.
    Source: DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2.
    """

    def apply(rewards, state: State, rollout: Rollout):
        differ = informative(rewards.raw, rollout.group, rewards.counted)
        share = masked_mean(differ.astype(jnp.float32), rewards.counted)
        return (
            rewards.replace(counted=rewards.counted & differ),
            state,
            {"informative_ratio": share},
        )

    return Transform(lambda: (), apply, needs_groups=True)
