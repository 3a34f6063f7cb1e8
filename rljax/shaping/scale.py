"""A running bound that keeps a penalty small beside the reward it shapes."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Magnitudes(NamedTuple):
    """Running sums of a batch's mean magnitudes, older batches decayed."""

    reward: Float[Array, ""]
    penalty: Float[Array, ""]


def init_magnitudes() -> Magnitudes:
    return Magnitudes(jnp.float32(0), jnp.float32(0))


def bound_to_reward(
    penalty: Float[Array, " B"],
    raw: Float[Array, " B"],
    state: Magnitudes,
    *,
    share: float,
    decay: float = 0.9,
) -> tuple[Float[Array, " B"], Magnitudes]:
    """Scales ``penalty`` by min(1, share · E|raw| / E|penalty|).

    The expectations are running means over batches, this one included, that forget by ``decay``;
    only their quotient counts, so that they need no normalising. The mean penalty stays within
    about ``share`` of the reward's magnitude; one that is already smaller is left as it is.
    """
    state = Magnitudes(
        decay * state.reward + jnp.abs(raw).mean(), decay * state.penalty + jnp.abs(penalty).mean()
    )
    factor = jnp.minimum(1.0, share * state.reward / jnp.maximum(state.penalty, 1e-8))
    return penalty * factor, state
