"""A running bound that keeps a penalty small beside the reward it shapes."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.masked import masked_mean


class RunningScale(NamedTuple):
    """The mean magnitude of the reward, over batches that count less the older they are."""

    total: Float[Array, ""]
    weight: Float[Array, ""]


def init_scale() -> RunningScale:
    return RunningScale(jnp.float32(0), jnp.float32(0))


def bound_to_reward(
    penalty: Float[Array, " B"],
    raw: Float[Array, " B"],
    counted: Bool[Array, " B"],
    state: RunningScale,
    *,
    share: float,
    decay: float = 0.9,
) -> tuple[Float[Array, " B"], RunningScale]:
    """Scales ``penalty`` by min(1, share · E|raw| / mean|penalty|), and updates the estimate.

    E|raw| is the mean over batches, this one included, each weighing ``decay`` times the next. So
    a batch's mean penalty never exceeds ``share`` of the reward's magnitude, and one that is
    smaller is left as it is. A batch of which nothing is counted tells nothing.
    """
    tells = counted.any()
    keeps = jnp.where(tells, decay, 1.0)
    state = RunningScale(
        keeps * state.total + masked_mean(jnp.abs(raw), counted), keeps * state.weight + tells
    )
    bound = share * state.total / jnp.maximum(state.weight, 1e-8)
    mean = masked_mean(jnp.abs(penalty), counted)
    return penalty * jnp.minimum(1.0, bound / jnp.maximum(mean, 1e-8)), state
