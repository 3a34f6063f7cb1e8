"""The decoder: Flax NNX modules, split at once into pure functions over a parameter tree.

Layers are stacked and scanned, so that compile time does not grow with depth. Parameters are
named by their logical axes, and drawn in float32; the arithmetic runs in ``config.dtype``. The
families differ in their ``DecoderConfig`` alone.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from rljax.models.attention import attention, softcapped
from rljax.models.experts import Experts, apply_experts, route
from rljax.models.flash import cudnn_attention, platform_kernel, splash_attention
from rljax.models.rope import Rope, rotate, turns
from rljax.sharding import SAMPLING, STREAM, TRAINING, Rules, axis_shards, column_shards, lay
from rljax.types import Cache, Model, Params

INPUT = "layer_input"
REMAT = {  # by name; "none" wraps nothing
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
QUERIES = ("rows", "columns", "heads", None)  # logical axes
KEYS = ("rows", "kv_heads", None, None)  # and of values
ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": jax.nn.gelu}


@dataclasses.dataclass(frozen=True)
class Attends:
    """How the layers of one kind attend: to how many tokens back, and with which positions."""

    rope: Rope
    window: int | None = None  # tokens, its own included; None: all


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters beside matrices (arXiv 2106.09685): x·W + (alpha / rank)·x·A·B.

    ``targets`` are names of matrices: query, key, value, out, gate, up, down.
    """

    rank: int
    alpha: float
    targets: frozenset[str]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder."""

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int  # of each expert, where there are several
    attends: tuple[Attends, ...]  # one for each layer
    norm_eps: float
    tied: bool  # the embedding is the output head too
    dtype: Literal["float32", "bfloat16"]  # of the arithmetic
    remat: Literal["none", "full", "dots", "offload"]
    """What the backward pass keeps of each layer: everything ("none"), only its input ("full"), the
    results of matrix products ("dots"), or only its input, in the host's memory ("offload")."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    norms: Literal["before", "after", "both"] = "before"  # of each attention and MLP
    norm_offset: float = 0.0  # added to the scale of every norm
    qk_norm: Literal["none", "head", "all"] = "none"  # of each head's entries, or of all heads'
    attention_divisor: float | None = None  # of the scores; by default √head_dim
    attention_softcap: float | None = None  # c·tanh(scores / c)
    logit_softcap: float | None = None
    logit_divisor: float = 1.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0  # of what a layer adds
    experts: Experts | None = None
    lora: LoRA | None = None
    vocab_at_once: int = 16384  # ids whose logits exist together, for all the tokens of a batch
    attention: Literal["auto", "plain"] = "auto"  # over whole rows: the platform's kernel, if any

    def __post_init__(self):
        assert len(self.attends) == self.layers


class Linear(nnx.Module):
    """x·W, plus a bias or low-rank adapters if there are such. Leading axes of W are inputs."""

    def __init__(self, rngs, std, inputs, outputs, *, bias=False, lora: LoRA | None = None):
        """``inputs`` and ``outputs`` map the logical axes of W to their sizes."""
        shape, axes = (*inputs.values(), *outputs.values()), (*inputs, *outputs)
        self.inputs = len(inputs)
        self.kernel = _normal(rngs, std, shape, axes)
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
        std, size = _small(config.width), {"head_dim": config.head_dim}
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
        make = functools.partial(Linear, rngs, _small(config.width), bias=config.mlp_bias)
        self.gate = make(width, hidden, lora=_adapters(config, "gate"))
        self.up = make(width, hidden, lora=_adapters(config, "up"))
        self.down = make(hidden, width, lora=_adapters(config, "down"))
        self.activate = ACTIVATIONS[config.activation]

    def __call__(self, x, rules):
        hidden = self.activate(self.gate(x)) * self.up(x)
        return self.down(lay(hidden, ("rows", "columns", "mlp"), rules))


class MixtureMLP(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        std, experts = _small(config.width), config.experts
        count, width, hidden = experts.count, config.width, config.mlp_width
        self.router = _normal(rngs, std, (width, count), ("embed", None))
        inward = ((count, width, hidden), ("experts", "embed", "expert_mlp"))
        self.gate, self.up = _normal(rngs, std, *inward), _normal(rngs, std, *inward)
        outward = ((count, hidden, width), ("experts", "expert_mlp", "embed"))
        self.down = _normal(rngs, std, *outward)
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


class Decoder(nnx.Module):
    def __init__(self, config: DecoderConfig, head: Literal["lm", "value"], rngs: nnx.Rngs):
        self.config, self.head_kind = config, head
        width, vocab, std = config.width, config.vocab_size, _small(config.width)
        self.embed = _normal(rngs, std, (vocab, width), ("vocab", "embed"))
        stack = nnx.split_rngs(splits=config.layers)(nnx.vmap(lambda r: Block(config, r)))
        self.layers = stack(rngs)
        self.norm = RMSNorm(config)
        if head == "value":
            self.head = nnx.Param(jnp.zeros((width, 1)), axes=("embed", None))
        elif not config.tied:
            self.head = _normal(rngs, std, (width, vocab), ("embed", "vocab"))

    def hidden(
        self,
        tokens,
        mask,
        cache: Cache | None = None,
        column: int | Array = 0,
        segments: Int[Array, "B T"] | None = None,
    ):
        """Hidden states [B, Tq, D] of ``tokens`` [B, Tq], attending causally.

        Without a cache ``mask`` is [B, Tq]. With one, ``tokens`` stand at columns ``column``… of
        its S columns, ``mask`` is [B, S] and covers them too; the new cache is returned as well.
        ``segments`` numbers the sequences that are packed into a row: each token attends within
        its own, and positions begin anew in each.
        """
        config, queries = self.config, tokens.shape[1]
        counts = jnp.cumsum(mask, axis=-1)
        if segments is not None:
            counts = counts - _before_segment(counts, segments)
        positions = jax.lax.dynamic_slice_in_dim(
            jnp.maximum(counts - 1, 0), column, queries, axis=1
        )
        distance = column + jnp.arange(queries)[:, None] - jnp.arange(mask.shape[1])
        kinds = list(dict.fromkeys(config.attends))
        ropes = jnp.stack([turns(kind.rope, positions) for kind in kinds])
        there = mask[:, None]
        if segments is not None:
            there = there & (segments[:, :, None] == segments[:, None])
        visible = jnp.stack([there & _within(distance, kind.window) for kind in kinds])
        kind_of = jnp.array([kinds.index(kind) for kind in config.attends])
        rules = TRAINING if cache is None else SAMPLING
        table = lay(self.embed[...], ("vocab", None), rules)  # rows whole, as a gather needs them
        x = table[tokens].astype(config.dtype)
        if config.embed_scale != 1.0:
            x = x * jnp.asarray(config.embed_scale, config.dtype)
        x = lay(x, STREAM, rules)
        copies = _kv_copies(config, rules)
        attend_over = _attention_of(config, copies, mask, segments, cached=cache is not None)
        definition, layers = nnx.split(self.layers)

        def layer(carry, inputs):
            x, cache = carry
            x = checkpoint_name(x, INPUT)
            index, kind, params = inputs
            kind = kind if len(kinds) > 1 else 0
            rope, seen = ropes[kind], visible[kind]

            def attend(q, k, v):
                # Each query sees the keys of all columns, wherever these lie.
                k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
                if copies > 1:
                    k, v = (jnp.repeat(y, copies, axis=1) for y in (k, v))
                k, v = lay(k, KEYS, rules), lay(v, KEYS, rules)
                written = None if cache is None else _write(cache, k, v, index, column)
                if written is not None:
                    k, v = written.keys[index], written.values[index]
                return attend_over(lay(q, QUERIES, rules), k, v, seen, kind), written

            x, cache = nnx.merge(definition, params)(x, rope, attend, rules)
            return (lay(x, STREAM, rules), cache), None

        if config.remat != "none" and cache is None:
            layer = jax.checkpoint(layer, policy=REMAT[config.remat], prevent_cse=False)
        inputs = (jnp.arange(config.layers), kind_of, layers)
        (x, cache), _ = jax.lax.scan(layer, (x, cache), inputs)
        x = self.norm(x)
        return x if cache is None else (x, cache)

    def readout(self, x):
        """Logits [..., V] or values [...], in float32."""
        if self.head_kind == "lm" and self.config.tied:
            weight = self.embed[...].T
        else:
            weight = self.head[...]
        out = jnp.matmul(x, weight.astype(x.dtype), preferred_element_type=jnp.float32)
        if self.head_kind == "value":
            return out[..., 0]
        if self.config.logit_divisor != 1.0:
            out = out / self.config.logit_divisor
        cap = self.config.logit_softcap
        return out if cap is None else softcapped(out, cap)


def decoder(config: DecoderConfig, head: Literal["lm", "value"] = "lm") -> Model:
    """The pure functions of a decoder with a language-model head, or with a scalar value head
    (which starts at zero)."""

    def make(key):
        return Decoder(config, head, nnx.Rngs(params=key))

    abstract = nnx.eval_shape(lambda: make(jax.random.key(0)))
    definition, state = nnx.split(abstract)

    def init(key) -> Params:
        return nnx.to_pure_dict(nnx.state(make(key)))

    def apply(params, tokens, mask, cache=None, column=0, segments=None):
        return nnx.merge(definition, params).hidden(tokens, mask, cache, column, segments)

    def readout(params, hidden):
        return nnx.merge(definition, params).readout(hidden)

    def init_cache(rows: int, columns: int) -> Cache:
        kv_heads = config.kv_heads * _kv_copies(config, SAMPLING)
        shape = (config.layers, rows, kv_heads, columns, config.head_dim)
        return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))

    def axes_of(variable):
        axes = variable.get_metadata()["axes"]
        return axes if variable.ndim == len(axes) else ("layers", *axes)

    def cast(params):
        def at(path, leaf):
            return leaf if path[-1].key == "scale" else leaf.astype(config.dtype)  # norms: float32

        return jax.tree.map_with_path(at, params)

    axes = jax.tree.map(axes_of, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    parts = None
    if head == "lm" and config.vocab_size > config.vocab_at_once:
        parts = functools.partial(_head_parts, config)
    return Model(init, apply, readout, init_cache, nnx.to_pure_dict(axes), cast, parts)


def _head_parts(config: DecoderConfig, params: Params):
    """``Model.head_parts``. Each part has ids of every device that the vocabulary is spread over,
    so that all have work."""
    name, axis = ("embed", 0) if config.tied else ("head", 1)
    shards = axis_shards("vocab", config.vocab_size)
    held = config.vocab_size // shards
    size = -(-held // -(-config.vocab_size // config.vocab_at_once))
    count = -(-held // size)  # every part has an id of every device

    def split(x, axis, filler):
        x = x.reshape(*x.shape[:axis], shards, held, *x.shape[axis + 1 :])
        room = [(0, 0)] * x.ndim
        room[axis + 1] = (0, count * size - held)
        x = jnp.pad(x, room, constant_values=filler)
        x = x.reshape(*x.shape[: axis + 1], count, size, *x.shape[axis + 2 :])
        x = jnp.moveaxis(x, axis + 1, 0)
        return x.reshape(*x.shape[: axis + 1], shards * size, *x.shape[axis + 3 :])

    names = ("vocab", "embed") if config.tied else ("embed", "vocab")
    weight = lay(split(params[name], axis, 0), (None, *names))
    return {name: weight}, split(jnp.arange(config.vocab_size), 0, -1)


def extend_cache(cache: Cache, columns: int, group_size: int) -> Cache:
    """A cache with ``columns`` more on the right, each row repeated ``group_size`` times."""

    def extend(x):
        return jnp.pad(jnp.repeat(x, group_size, axis=1), [(0, 0)] * 3 + [(0, columns), (0, 0)])

    return jax.tree.map(extend, cache)


def _attention_of(config: DecoderConfig, copies: int, mask, segments, *, cached: bool):
    """(queries, keys, values, visible, number of the kind of layer) -> mixed values: over whole
    rows in the platform's kernel, if it has one."""
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


def _kv_copies(config: DecoderConfig, rules: Rules) -> int:
    """Of each key head, so that every device that has heads of queries has theirs and no others."""
    shards = axis_shards("heads", config.heads, rules)
    return shards // config.kv_heads if shards % config.kv_heads == 0 else 1


def _small(width: int) -> float:
    """The standard deviation √(2 / 5·width), the "small init" of arXiv 1910.05895."""
    return math.sqrt(2 / (5 * width))


def _normal(rngs: nnx.Rngs, std: float, shape, axes) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape), axes=axes)


def _adapters(config: DecoderConfig, name: str) -> LoRA | None:
    return config.lora if config.lora and name in config.lora.targets else None


def _multiply(x: Float[Array, "B T *n"], weight: Array, inputs: int = 1):
    """Contracts the last ``inputs`` axes of x with the first of ``weight``, in the dtype of x.

    As one flat matrix product, unless columns are spread over the mesh: XLA's CPU backend takes
    twice as long for the weight's gradient of a batched one, whose operands it transposes.
    """
    if column_shards() > 1:
        return jnp.tensordot(x, weight.astype(x.dtype), inputs)
    size = math.prod(weight.shape[:inputs])
    flat = x.reshape(-1, size) @ weight.reshape(size, -1).astype(x.dtype)
    return flat.reshape(*x.shape[:-inputs], *weight.shape[inputs:])


def _before_segment(counts, segments):
    """How many real tokens of the row stand before each token's segment."""
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], [(0, 0), (1, 0)])
    return jax.lax.cummax(jnp.where(first, counts - 1, 0), axis=1)


def _within(distance, window: int | None):
    """Which columns a query sees, by how far before it they stand."""
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _write(cache: Cache, k, v, layer, column) -> Cache:
    def write(old, new):
        start = (layer, 0, 0, column, 0)
        return jax.lax.dynamic_update_slice(old, new[None].astype(old.dtype), start)

    return Cache(write(cache.keys, k), write(cache.values, v))
