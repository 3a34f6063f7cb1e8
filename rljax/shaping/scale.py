"""A running bound that keeps a penalty small beside the reward it shapes."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class RunningScale(NamedTuple):
    """The mean magnitude of the reward, over batches that count less the older they are."""

    total: Float[Array, ""]
    weight: Float[Array, ""]


def init_scale() -> RunningScale:
    return RunningScale(jnp.float32(0), jnp.float32(0))


def bound_to_reward(
    penalty: Float[Array, " B"],
    raw: Float[Array, " B"],
    state: RunningScale,
    *,
    share: float,
    decay: float = 0.9,
) -> tuple[Float[Array, " B"], RunningScale]:
    """Scales ``penalty`` by min(1, share · E|raw| / mean|penalty|), and updates the estimate.

    E|raw| is the mean over batches, this one included, each weighing ``decay`` times the next. So
    a batch's mean penalty never exceeds ``share`` of the reward's magnitude, and one that is
    smaller is left as it is.
    """
    state = RunningScale(decay * state.total + jnp.abs(raw).mean(), decay * state.weight + 1.0)
    bound = share * state.total / state.weight
    return penalty * jnp.minimum(1.0, bound / jnp.maximum(jnp.abs(penalty).mean(), 1e-8)), state
