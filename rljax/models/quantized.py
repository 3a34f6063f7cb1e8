"""Sampling in eight bits: the matrices of products, and keys and values, as int8 with scales.

Symmetric and by the largest magnitude, as the vector-wise scheme of Dettmers et al. 2022 (arXiv
2208.07339): one scale for each output of a matrix, and one for each token and key head of a cache.
A product is made with the integers, which bfloat16 holds exactly, and its result is scaled, so that
no matrix or cache is ever dequantised.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rljax.sharding import TRAINING, lay_tree
from rljax.types import FEATURES, Cache, Model, Params, Quantized, Stored

LARGEST = 127  # of int8, symmetric


def quantize(x: Float[Array, "..."], axes: tuple[int, ...]) -> Quantized:
    """Entries as round(x / scale), where scale = max |x| / 127 over ``axes``; 0 where all are 0.

    Each entry is off by half a scale at the most.

    >>> quantize(jnp.array([[127.0, -2.0], [63.4, 0.0]]), (-1,)).values.tolist()
    [[127, -2], [127, 0]]
    """
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axes, keepdims=True) / LARGEST
    values = jnp.round(x / jnp.where(scale > 0, scale, 1.0))
    return Quantized(values.astype(jnp.int8), scale)


def dequantize(x: Stored) -> Array:
    """The numbers that are meant, in float32; of an array, itself."""
    return x.values * x.scale if isinstance(x, Quantized) else x


def operands(x: Array, weight: Stored) -> tuple[Array, Array]:
    """Of a product: x, and the weight, or its integers, in the type of x.

    Integers are cast where they are multiplied. XLA would cast them once, before the loop of
    decoding, which then read as much as if they had not been quantised.
    """
    if not isinstance(weight, Quantized):
        return x, weight.astype(x.dtype)
    x, integers = jax.lax.optimization_barrier((x, weight.values))
    return x, integers.astype(x.dtype)


def quantized(
    model: Model,
    sums: Params,
    *,
    weights: Literal["int8"] | None,
    kv_cache: Literal["int8"] | None,
) -> Model:
    """The model as it samples with weights, or with keys and values, of eight bits.

    Args:
      sums: for each parameter the axes that its product sums over; () for those that stay.
    """
    if weights is not None:
        axes = jax.tree.map(_axes, sums, model.axes, is_leaf=_is_tuple)
        model = model._replace(cast=functools.partial(_cast, model.cast, sums, axes), axes=axes)
    if kv_cache is not None:
        model = model._replace(init_cache=functools.partial(_init_cache, model.init_cache))
    return model


def _cast(cast: Callable[[Params], Params], sums: Params, axes: Params, params: Params) -> Params:
    def one(x, cast, over):
        return quantize(x, over) if over else cast

    # Where they are trained: what moves from there is of eight bits.
    return lay_tree(jax.tree.map(one, params, cast(params), sums), axes, TRAINING)


def _axes(over, names):
    """A scale lies as its matrix does: an axis of one entry is never spread."""
    return Quantized(names, names) if over else names


def _init_cache(init_cache: Callable[[int, int], Cache], rows: int, columns: int) -> Cache:
    def zeros(axis, part):
        def one(x):
            of_scale = list(x.shape)
            of_scale[axis] = 1
            return Quantized(jnp.zeros(x.shape, jnp.int8), jnp.zeros(of_scale))

        return jax.tree.map(one, part)

    return jax.tree.map(zeros, FEATURES, jax.eval_shape(lambda: init_cache(rows, columns)))


def _is_tuple(x) -> bool:
    return isinstance(x, tuple)
