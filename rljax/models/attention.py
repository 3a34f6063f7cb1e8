"""Attention of queries over keys and values: heads that share a key head are grouped."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rljax.sharding import column_shards


def attention(
    q: Float[Array, "B T H h"],
    keys: Float[Array, "B K S h"],
    values: Float[Array, "B K S h"],
    visible: Bool[Array, "B T S"],
    *,
    divisor: float,
    softcap: float | None = None,
) -> Float[Array, "B T H h"]:
    """softmax(q·k / ``divisor``)·v over the columns that are ``visible``.

    The queries that share a key head are stacked as rows of one matrix product, unless they are
    spread over a mesh, which could not spread the stack.
    """
    rows, queries, heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    q = q.reshape(rows, queries, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)  # B K G T h
    grouped = q.shape
    stacked = column_shards() == 1 or queries == 1
    if stacked:
        q = q.reshape(rows, kv_heads, -1, head_dim)
    scores = jnp.einsum("bk...h,bksh->bk...s", q, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(*grouped[:-1], -1) / divisor
    if softcap is not None:
        scores = softcapped(scores, softcap)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -1e30), axis=-1)
    weights = weights.astype(q.dtype).reshape(*q.shape[:-1], -1)
    mixed = jnp.einsum("bk...s,bksh->bk...h", weights, values)
    mixed = mixed.reshape(grouped).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(rows, queries, heads, head_dim)


def softcapped(x: Array, cap: float) -> Array:
    """cap·tanh(x / cap)."""
    return cap * jnp.tanh(x / cap)
