"""The layers of a decoder, as Flax NNX modules.

Parameters are named by their logical axes, and drawn in float32; the arithmetic runs in
``config.dtype``.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rljax.models.config import DecoderConfig, LoRA
from rljax.models.experts import apply_experts, route
from rljax.models.quantized import operands
from rljax.models.rope import rotate
from rljax.sharding import column_shards, lay
from rljax.types import Quantized, Stored

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": jax.nn.gelu}


class Linear(nnx.Module):
    """x·W, plus a bias or low-rank adapters if there are such. Leading axes of W are inputs."""

    def __init__(self, rngs, std, inputs, outputs, *, bias=False, lora: LoRA | None = None):
        """``inputs`` and ``outputs`` map the logical axes of W to their sizes."""
        shape, axes = (*inputs.values(), *outputs.values()), (*inputs, *outputs)
        self.inputs = len(inputs)
        self.kernel = normal(rngs, std, shape, axes, tuple(range(-len(shape), -len(outputs))))
        if bias:
            self.bias = nnx.Param(jnp.zeros(tuple(outputs.values())), axes=tuple(outputs))
        self.gain = 0.0
        if lora is not None:
            self.gain = lora.alpha / lora.rank
            bound = 1 / math.sqrt(math.prod(inputs.values()))
            shape = (*inputs.values(), lora.rank)
            start = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
            self.lora_a = nnx.Param(start, axes=(*inputs, None))
            self.lora_b = nnx.Param(
                jnp.zeros((lora.rank, *outputs.values())), axes=(None, *outputs)
            )

    def __call__(self, x):
        y = _multiply(x, self.kernel[...], self.inputs)
        if self.gain:
            y += self.gain * _multiply(
                _multiply(x, self.lora_a[...], self.inputs), self.lora_b[...]
            )
        return y + self.bias[...].astype(y.dtype) if hasattr(self, "bias") else y


class RMSNorm(nnx.Module):
    def __init__(self, config: DecoderConfig, shape: dict[str | None, int] | None = None):
        """Over the axes of ``shape``, by their logical names; by default over the width."""
        shape = {None: config.width} if shape is None else shape
        start = 1.0 - config.norm_offset
        self.scale = nnx.Param(jnp.full(tuple(shape.values()), start), axes=tuple(shape))
        self.eps, self.offset = config.norm_eps, config.norm_offset
        self.over = tuple(range(-len(shape), 0))

    def __call__(self, x):
        x32 = x.astype(jnp.float32)
        square = jnp.mean(jnp.square(x32), axis=self.over, keepdims=True)
        normal = x32 * jax.lax.rsqrt(square + self.eps)
        scale = self.scale[...].astype(jnp.float32) + self.offset
        return (normal * scale).astype(x.dtype)


class Attention(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        std, size = small_std(config.width), {"head_dim": config.head_dim}
        width = {"embed": config.width}
        heads, kv_heads = {"heads": config.heads} | size, {"kv_heads": config.kv_heads} | size
        make, bias = functools.partial(Linear, rngs, std), config.qkv_bias
        self.query = make(width, heads, bias=bias, lora=_adapters(config, "query"))
        self.key = make(width, kv_heads, bias=bias, lora=_adapters(config, "key"))
        self.value = make(width, kv_heads, bias=bias, lora=_adapters(config, "value"))
        self.out = make(heads, width, bias=config.out_bias, lora=_adapters(config, "out"))
        if config.qk_norm != "none":
            whole = config.qk_norm == "all"
            self.query_norm = RMSNorm(config, heads if whole else size)
            self.key_norm = RMSNorm(config, kv_heads if whole else size)

    def __call__(self, x, rope, attend):
        query, key, value = self.query(x), self.key(x), self.value(x)
        if hasattr(self, "query_norm"):
            query, key = self.query_norm(query), self.key_norm(key)
        mixed, cache = attend(rotate(query, rope), rotate(key, rope), value)
        return self.out(mixed), cache


class GatedMLP(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        width, hidden = {"embed": config.width}, {"mlp": config.mlp_width}
        make = functools.partial(Linear, rngs, small_std(config.width), bias=config.mlp_bias)
        self.gate = make(width, hidden, lora=_adapters(config, "gate"))
        self.up = make(width, hidden, lora=_adapters(config, "up"))
        self.down = make(hidden, width, lora=_adapters(config, "down"))
        self.activate = ACTIVATIONS[config.activation]

    def __call__(self, x, rules):
        hidden = self.activate(self.gate(x)) * self.up(x)
        return self.down(lay(hidden, ("rows", "columns", "mlp"), rules))


class MixtureMLP(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        std, experts = small_std(config.width), config.experts
        count, width, hidden = experts.count, config.width, config.mlp_width
        self.router = normal(rngs, std, (width, count), ("embed", None))
        inward = ((count, width, hidden), ("experts", "embed", "expert_mlp"), (-2,))
        self.gate, self.up = normal(rngs, std, *inward), normal(rngs, std, *inward)
        outward = ((count, hidden, width), ("experts", "expert_mlp", "embed"), (-2,))
        self.down = normal(rngs, std, *outward)
        self.experts, self.activate = experts, ACTIVATIONS[config.activation]

    def __call__(self, x, rules):
        logits = _multiply(x, self.router[...]).astype(jnp.float32)
        chosen, weights = route(logits, self.experts)

        def mlp(rows, multiply):
            hidden = self.activate(multiply(rows, "gate")) * multiply(rows, "up")
            return multiply(hidden, "down")

        matrices = {"gate": self.gate[...], "up": self.up[...], "down": self.down[...]}
        return apply_experts(x, chosen, weights, mlp, matrices, rules)


class Block(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        if config.norms in ("before", "both"):
            self.attention_norm, self.mlp_norm = RMSNorm(config), RMSNorm(config)
        self.attention = Attention(config, rngs)
        self.mlp = (MixtureMLP if config.experts else GatedMLP)(config, rngs)
        if config.norms in ("after", "both"):
            self.attention_post_norm, self.mlp_post_norm = RMSNorm(config), RMSNorm(config)
        self.norms, self.scale = config.norms, config.residual_scale

    def __call__(self, x, rope, attend, rules):
        before, after = self.norms in ("before", "both"), self.norms in ("after", "both")
        y, cache = self.attention(self.attention_norm(x) if before else x, rope, attend)
        x = self._add(x, self.attention_post_norm(y) if after else y)
        y = self.mlp(self.mlp_norm(x) if before else x, rules)
        return self._add(x, self.mlp_post_norm(y) if after else y), cache

    def _add(self, x, y):
        return x + (y if self.scale == 1.0 else y * self.scale)


def small_std(width: int) -> float:
    """The standard deviation √(2 / 5·width), the "small init" of arXiv 1910.05895."""
    return math.sqrt(2 / (5 * width))


def normal(rngs: nnx.Rngs, std: float, shape, axes, sums: tuple[int, ...] = ()) -> nnx.Param:
    """``sums``: the axes that a product with it sums over, if it may be quantised."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape), axes=axes, sums=sums)


def _adapters(config: DecoderConfig, name: str) -> LoRA | None:
    return config.lora if config.lora and name in config.lora.targets else None


def _multiply(x: Float[Array, "B T *n"], weight: Stored, inputs: int = 1):
    """Contracts the last ``inputs`` axes of x with the first of ``weight``, in the dtype of x.

    As one flat matrix product, unless columns are spread over the mesh: XLA's CPU backend takes
    twice as long for the weight's gradient of a batched one, whose operands it transposes.
    """
    if isinstance(weight, Quantized):
        scale = weight.scale.reshape(weight.scale.shape[inputs:])
        x, integers = operands(x, weight)
        return (_multiply(x, integers, inputs) * scale).astype(x.dtype)
    if column_shards() > 1:
        return jnp.tensordot(x, weight.astype(x.dtype), inputs)
    size = math.prod(weight.shape[:inputs])
    flat = x.reshape(-1, size) @ weight.reshape(size, -1).astype(x.dtype)
    return flat.reshape(*x.shape[:-inputs], *weight.shape[inputs:])
