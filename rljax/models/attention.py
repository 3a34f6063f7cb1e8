"""Attention of queries over keys and values: in the platform's kernel, or plainly, the heads that
share a key head in one group."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.models.config import DecoderConfig
from rljax.models.flash import cudnn_attention, platform_kernel, splash_attention
from rljax.sharding import axis_shards, column_shards
from rljax.types import FEATURES, Quantized


def attention(
    q: Float[Array, "B T H h"],
    keys: Float[Array, "B K h S"] | Quantized,
    values: Float[Array, "B K S h"] | Quantized,
    visible: Bool[Array, "B T S"],
    *,
    divisor: float,
    softcap: float | None = None,
) -> Float[Array, "B T H h"]:
    """softmax(q·k / ``divisor``)·v over the columns that are ``visible``.

    The queries that share a key head are stacked as rows of one matrix product, unless they are
    spread over a mesh, which could not spread the stack. Quantised keys and values have a scale
    for each column, which scores and weights are multiplied by.
    """
    keys, key_scale = _integers(keys, q.dtype, FEATURES.keys)
    values, value_scale = _integers(values, q.dtype, FEATURES.values)
    rows, queries, heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    q = q.reshape(rows, queries, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)  # B K G T h
    grouped = q.shape
    stacked = column_shards() == 1 or queries == 1
    if stacked:
        q = q.reshape(rows, kv_heads, -1, head_dim)
    scores = jnp.einsum("bk...h,bkhs->bk...s", q, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(*grouped[:-1], -1) / divisor
    if key_scale is not None:
        scores = scores * key_scale
    if softcap is not None:
        scores = softcapped(scores, softcap)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -1e30), axis=-1)
    if value_scale is not None:
        weights = weights * value_scale
    weights = weights.astype(q.dtype).reshape(*q.shape[:-1], -1)
    mixed = jnp.einsum("bk...s,bksh->bk...h", weights, values)
    mixed = mixed.reshape(grouped).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(rows, queries, heads, head_dim)


def _integers(x: Array | Quantized, dtype, axis: int):
    """As a product takes them, and their scales [B, K, 1, 1, S], if there are any, which lack
    ``axis``."""
    if not isinstance(x, Quantized):
        return x, None
    return x.values.astype(dtype), x.scale.squeeze(axis)[:, :, None, None]


def softcapped(x: Array, cap: float) -> Array:
    """cap·tanh(x / cap)."""
    return cap * jnp.tanh(x / cap)


def attention_of(config: DecoderConfig, copies: int, mask, segments, *, cached: bool):
    """(queries, keys, values, visible, number of the kind of layer) -> mixed values: over whole
    rows, without a cache, in the platform's kernel, if it has one; else plainly.

    ``copies``: of each key head, that the keys have.
    """
    kinds = list(dict.fromkeys(config.attends))
    scale = {"divisor": config.attention_divisor or math.sqrt(config.head_dim)}
    capped = scale | {"softcap": config.attention_softcap}
    kernel = None
    if not cached and config.attention == "auto":
        of_queries = axis_shards("heads", config.heads)
        alike = of_queries == axis_shards("kv_heads", config.kv_heads * copies)
        kernel = platform_kernel(
            config.dtype,
            config.head_dim,
            config.attention_softcap,
            spread_alike=alike and column_shards() == 1,
        )

    def attend(q, k, v, visible, kind):
        if kernel is None:
            return attention(q, k, v, visible, **capped)
        if kernel == "cudnn":
            return cudnn_attention(q, k, v, visible, **scale)
        numbers = jnp.where(mask, 1 if segments is None else segments, 0)
        splash = [functools.partial(splash_attention, window=one.window, **capped) for one in kinds]
        return jax.lax.switch(kind, splash, q, k, v, numbers)

    return attend
