"""Value losses, token by token."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.masked import masked_mean, masked_var


def clipped_value_loss(
    values: Float[Array, "B T"],
    old_values: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    *,
    clip: float | None = 0.5,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """½·max((v − R)², (v_old + clamp(v − v_old, ±clip) − R)²), and 1 where the clip decided.

    ``clip`` is in units of the return; None leaves the plain half square.
    Source: the value clipping of OpenAI baselines' PPO2.
    """
    chex.assert_equal_shape([values, old_values, returns])
    free = jnp.square(values - returns)
    if clip is None:
        return 0.5 * free, jnp.zeros_like(values)
    held = jnp.square(old_values + jnp.clip(values - old_values, -clip, clip) - returns)
    return 0.5 * jnp.maximum(free, held), (held > free).astype(jnp.float32)


def explained_variance(
    values: Float[Array, "B T"], returns: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, ""]:
    """1 − Var(R − v) / Var(R) over the mask: 1 is a perfect critic, 0 a constant one,
    and 0 where the returns do not vary."""
    total = masked_var(returns, mask)
    varies = total > 1e-12 * masked_mean(jnp.square(returns), mask)  # by more than rounding
    explained = 1.0 - masked_var(returns - values, mask) / jnp.where(varies, total, 1.0)
    return jnp.where(varies, explained, 0.0)
