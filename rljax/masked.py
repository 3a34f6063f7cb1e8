"""Reductions over the entries that a mask selects. An empty mask gives 0, never NaN."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Axis = int | tuple[int, ...] | None


def masked_sum(x: Float[Array, "*n"], mask: Bool[Array, "*n"], axis: Axis = None) -> Array:
    """Σ x over the mask. Entries outside may be anything, NaN included."""
    return jnp.sum(jnp.where(mask, x, 0.0), axis=axis)


def masked_mean(x: Float[Array, "*n"], mask: Bool[Array, "*n"], axis: Axis = None) -> Array:
    """Σ x / Σ mask.

    >>> float(masked_mean(jnp.array([1.0, 5.0, 3.0]), jnp.array([True, False, True])))
    2.0
    """
    return masked_sum(x, mask, axis) / jnp.maximum(jnp.sum(mask, axis=axis), 1)


def masked_var(x: Float[Array, "*n"], mask: Bool[Array, "*n"]) -> Float[Array, ""]:
    """The unbiased variance over the mask (Bessel's correction); 0 for fewer than two entries."""
    x = jnp.where(mask, x, 0.0)  # before the square, whose gradient would spread a NaN
    squares = masked_sum(jnp.square(x - masked_mean(x, mask)), mask)
    return squares / jnp.maximum(jnp.sum(mask) - 1, 1)


def masked_whiten(x: Float[Array, "*n"], mask: Bool[Array, "*n"]) -> Float[Array, "*n"]:
    """(x − μ)·rsqrt(var + 1e-8) over the masked entries of the whole array; 0 outside, and where
    they differ by no more than rounding."""
    x = jnp.where(mask, x, 0.0)
    mean, var = masked_mean(x, mask), masked_var(x, mask)
    differ = var > 1e-12 * jnp.square(mean)
    return jnp.where(mask & differ, (x - mean) * jax.lax.rsqrt(var + 1e-8), 0.0)
