"""Statistics per group, the responses to one prompt, over the rows that a mask selects.

Every row gets its group's number: all results are [B]. A group with no such rows gives 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def group_sum(
    x: Float[Array, " B"], group: Int[Array, " B"], mask: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """Σ x over the row's group.

    >>> group, mask = jnp.array([0, 0, 1]), jnp.array([True, True, True])
    >>> group_sum(jnp.array([1.0, 2.0, 5.0]), group, mask).tolist()
    [3.0, 3.0, 5.0]
    """
    return jax.ops.segment_sum(jnp.where(mask, x, 0.0), group, num_segments=len(group))[group]


def group_count(group: Int[Array, " B"], mask: Bool[Array, " B"]) -> Float[Array, " B"]:
    """How many rows of the row's group the mask selects."""
    return group_sum(mask.astype(jnp.float32), group, mask)


def group_mean(
    x: Float[Array, " B"], group: Int[Array, " B"], mask: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """The mean of x over the row's group; where all are alike, exactly that value."""
    origin = group_max(x, group, mask)  # a sum of alike values would leave rounding in the mean
    return origin + group_sum(x - origin, group, mask) / jnp.maximum(group_count(group, mask), 1)


def group_std(
    x: Float[Array, " B"], group: Int[Array, " B"], mask: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """The unbiased standard deviation over the row's group; 0 for fewer than two rows, and where
    the values differ by no more than rounding."""
    mean = group_mean(x, group, mask)
    squares = group_sum(jnp.square(x - mean), group, mask)
    variance = squares / jnp.maximum(group_count(group, mask) - 1, 1)
    return jnp.where(variance > 1e-12 * jnp.square(mean), jnp.sqrt(variance), 0.0)


def group_max(
    x: Float[Array, " B"], group: Int[Array, " B"], mask: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """The largest x of the row's group."""
    highest = jax.ops.segment_max(jnp.where(mask, x, -jnp.inf), group, num_segments=len(group))
    return jnp.where(jnp.isfinite(highest), highest, 0.0)[group]


def group_min(
    x: Float[Array, " B"], group: Int[Array, " B"], mask: Bool[Array, " B"]
) -> Float[Array, " B"]:
    """The smallest x of the row's group."""
    return -group_max(-x, group, mask)
