"""The decoder: Flax NNX modules, split at once into pure functions over a parameter tree.

Layers are stacked and scanned, so that compile time does not grow with depth. Parameters are
float32 and named by their logical axes; the arithmetic runs in ``config.dtype``.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rljax.sharding import gather_table, spread_rows
from rljax.types import Cache, Model, Params

REMAT = {  # by name; "none" wraps nothing
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder. ``remat``: what the backward pass keeps of each layer: everything
    ("none"), only its input ("full"), or the results of matrix products ("dots")."""

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_base: float
    norm_eps: float
    tied: bool
    dtype: Literal["float32", "bfloat16"]
    remat: Literal["none", "full", "dots"]


def _matrix(rngs: nnx.Rngs, width: int, shape, axes) -> nnx.Param:
    """A weight of standard deviation √(2 / 5·width), the "small init" of arXiv 1910.05895."""
    std = math.sqrt(2 / (5 * width))
    return nnx.Param(std * jax.random.normal(rngs.params(), shape), axes=axes)


class RMSNorm(nnx.Module):
    def __init__(self, config: DecoderConfig):
        self.scale = nnx.Param(jnp.ones(config.width), axes=(None,))
        self.eps = config.norm_eps

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        normal = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (normal * self.scale[...]).astype(x.dtype)


class Attention(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        width, size = config.width, config.head_dim
        heads, kv_heads = config.heads, config.kv_heads
        make = functools.partial(_matrix, rngs, width)
        self.query = make((width, heads, size), ("embed", "heads", "head_dim"))
        self.key = make((width, kv_heads, size), ("embed", "kv_heads", "head_dim"))
        self.value = make((width, kv_heads, size), ("embed", "kv_heads", "head_dim"))
        self.out = make((heads, size, width), ("heads", "head_dim", "embed"))

    def __call__(self, x, rope, attend):
        query, key, value = (_linear(x, w[...]) for w in (self.query, self.key, self.value))
        mixed, cache = attend(_rotate(query, rope), _rotate(key, rope), value)
        return _linear(mixed, self.out[...], inputs=2), cache


class GatedMLP(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        width, hidden = config.width, config.mlp_width
        self.gate = _matrix(rngs, width, (width, hidden), ("embed", "mlp"))
        self.up = _matrix(rngs, width, (width, hidden), ("embed", "mlp"))
        self.down = _matrix(rngs, width, (hidden, width), ("mlp", "embed"))

    def __call__(self, x):
        gate, up = _linear(x, self.gate[...]), _linear(x, self.up[...])
        return _linear(jax.nn.silu(gate) * up, self.down[...])


class Block(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm, self.mlp_norm = RMSNorm(config), RMSNorm(config)
        self.attention, self.mlp = Attention(config, rngs), GatedMLP(config, rngs)

    def __call__(self, x, rope, attend):
        mixed, cache = self.attention(self.attention_norm(x), rope, attend)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache


class Decoder(nnx.Module):
    def __init__(self, config: DecoderConfig, head: Literal["lm", "value"], rngs: nnx.Rngs):
        self.config, self.head_kind = config, head
        width, vocab = config.width, config.vocab_size
        self.embed = _matrix(rngs, width, (vocab, width), ("vocab", "embed"))
        stack = nnx.split_rngs(splits=config.layers)(nnx.vmap(lambda r: Block(config, r)))
        self.layers = stack(rngs)
        self.norm = RMSNorm(config)
        if head == "value":
            self.head = nnx.Param(jnp.zeros((width, 1)), axes=("embed", None))
        elif not config.tied:
            self.head = _matrix(rngs, width, (width, vocab), ("embed", "vocab"))

    def hidden(self, tokens, mask, cache: Cache | None = None, column: int | Array = 0):
        """Hidden states [B, Tq, D] of ``tokens`` [B, Tq], attending causally.

        Without a cache ``mask`` is [B, Tq]. With one, ``tokens`` stand at columns ``column``… of
        its S columns, ``mask`` is [B, S] and covers them too; the new cache is returned as well.
        """
        queries = tokens.shape[1]
        positions = jax.lax.dynamic_slice_in_dim(
            jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0), column, queries, axis=1
        )
        rope = _rope(positions, self.config)
        causal = jnp.arange(mask.shape[1]) <= column + jnp.arange(queries)[:, None]
        visible = mask[:, None, :] & causal  # [B, Tq, S]
        x = spread_rows(gather_table(self.embed[...])[tokens].astype(self.config.dtype))
        definition, layers = nnx.split(self.layers)

        def layer(carry, inputs):
            x, cache = carry
            index, params = inputs

            def attend(q, k, v):
                k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
                if cache is None:
                    return _attention(q, k, v, visible), None
                written = _write(cache, k, v, index, column)
                return _attention(q, written.keys[index], written.values[index], visible), written

            x, cache = nnx.merge(definition, params)(x, rope, attend)
            return (x, cache), None

        if self.config.remat != "none" and cache is None:
            layer = jax.checkpoint(layer, policy=REMAT[self.config.remat], prevent_cse=False)
        (x, cache), _ = jax.lax.scan(layer, (x, cache), (jnp.arange(self.config.layers), layers))
        x = self.norm(x)
        return x if cache is None else (x, cache)

    def readout(self, x):
        """Logits [..., V] or values [...], in float32."""
        if self.head_kind == "lm" and self.config.tied:
            weight = self.embed[...].T
        else:
            weight = self.head[...]
        out = jnp.matmul(x, weight.astype(x.dtype), preferred_element_type=jnp.float32)
        return out[..., 0] if self.head_kind == "value" else out


def decoder(config: DecoderConfig, head: Literal["lm", "value"] = "lm") -> Model:
    """The pure functions of a decoder with a language-model head, or with a scalar value head
    (which starts at zero)."""

    def make(key):
        return Decoder(config, head, nnx.Rngs(params=key))

    abstract = nnx.eval_shape(lambda: make(jax.random.key(0)))
    definition, state = nnx.split(abstract)

    def init(key) -> Params:
        return nnx.to_pure_dict(nnx.state(make(key)))

    def apply(params, tokens, mask, cache=None, column=0):
        return nnx.merge(definition, params).hidden(tokens, mask, cache, column)

    def readout(params, hidden):
        return nnx.merge(definition, params).readout(hidden)

    def init_cache(rows: int, columns: int) -> Cache:
        shape = (config.layers, rows, config.kv_heads, columns, config.head_dim)
        return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

    def axes_of(variable):
        axes = variable.get_metadata()["axes"]
        return axes if variable.ndim == len(axes) else ("layers", *axes)

    axes = jax.tree.map(axes_of, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return Model(init, apply, readout, init_cache, nnx.to_pure_dict(axes))


def extend_cache(cache: Cache, columns: int, group_size: int) -> Cache:
    """A cache with ``columns`` more on the right, each row repeated ``group_size`` times."""

    def extend(x):
        return jnp.pad(jnp.repeat(x, group_size, axis=1), [(0, 0)] * 3 + [(0, columns), (0, 0)])

    return jax.tree.map(extend, cache)


def _linear(x: Float[Array, "B T *n"], weight: Array, inputs: int = 1):
    """Contracts the last ``inputs`` axes of x with the first of ``weight``, in the dtype of x.

    As one flat matrix product: XLA's CPU backend takes twice as long for the weight's gradient of
    a batched one, whose operands it transposes.
    """
    size = math.prod(weight.shape[:inputs])
    flat = x.reshape(-1, size) @ weight.reshape(size, -1).astype(x.dtype)
    return flat.reshape(*x.shape[:-inputs], *weight.shape[inputs:])


def _write(cache: Cache, k, v, layer, column) -> Cache:
    def write(old, new):
        start = (layer, 0, 0, column, 0)
        return jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), start)

    return Cache(write(cache.keys, k), write(cache.values, v))


def _attention(
    q: Float[Array, "B T H h"],
    keys: Float[Array, "B K S h"],
    values: Float[Array, "B K S h"],
    visible: Bool[Array, "B T S"],
) -> Float[Array, "B T H h"]:
    """Grouped-query attention; the queries that share a key head are stacked as rows of one
    matrix product."""
    rows, queries, heads, head_dim = q.shape
    kv_heads, columns = keys.shape[1:3]
    stacked = (rows, kv_heads, -1, head_dim)
    q = q.reshape(rows, queries, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4).reshape(stacked)
    scores = jnp.einsum("bkth,bksh->bkts", q, keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(rows, kv_heads, -1, queries, columns) / math.sqrt(head_dim)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -1e30), axis=-1)
    weights = weights.astype(q.dtype).reshape(rows, kv_heads, -1, columns)
    mixed = jnp.einsum("bkts,bksh->bkth", weights, values)
    mixed = mixed.reshape(rows, kv_heads, -1, queries, head_dim).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(rows, queries, heads, head_dim)


def _rope(positions: Int[Array, "B T"], config: DecoderConfig):
    """Cosine and sine [B, T, 1, h/2] of the rotary embedding (arXiv 2104.09864)."""
    half = config.head_dim // 2
    frequencies = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x, rope):
    cos, sin = rope
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
