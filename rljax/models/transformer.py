"""The decoder: Flax NNX modules, split at once into pure functions over a parameter tree.

Layers are stacked and scanned, so that compile time does not grow with depth. The families differ
in their ``DecoderConfig`` alone.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Int

from rljax.models.attention import attention_of, softcapped
from rljax.models.cache import columns_from, write_cache
from rljax.models.config import DecoderConfig
from rljax.models.layers import Block, RMSNorm, normal, small_std
from rljax.models.quantized import dequantize, operands, quantized
from rljax.models.rope import turns
from rljax.sharding import SAMPLING, STREAM, TRAINING, Rules, axis_shards, lay
from rljax.types import Cache, Model, Params, Quantized

MOST_UNROLLED = 8  # layers, whose caches lie apart: then none is copied to be read
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


class Decoder(nnx.Module):
    def __init__(self, config: DecoderConfig, head: Literal["lm", "value"], rngs: nnx.Rngs):
        self.config, self.head_kind = config, head
        width, vocab, std = config.width, config.vocab_size, small_std(config.width)
        sums = (-1,) if config.tied else ()  # as the head; a lookup sums over nothing
        self.embed = normal(rngs, std, (vocab, width), ("vocab", "embed"), sums)
        stack = nnx.split_rngs(splits=config.layers)(nnx.vmap(lambda r: Block(config, r)))
        self.layers = stack(rngs)
        self.norm = RMSNorm(config)
        if head == "value":
            self.head = nnx.Param(jnp.zeros((width, 1)), axes=("embed", None))
        elif not config.tied:
            self.head = normal(rngs, std, (width, vocab), ("embed", "vocab"), (-2,))

    def hidden(
        self,
        tokens,
        mask,
        cache: Cache | None = None,
        column: int | Array = 0,
        segments: Int[Array, "B T"] | None = None,
        layers: tuple[Params, ...] | None = None,
    ):
        """Hidden states [B, Tq, D] of ``tokens`` [B, Tq], attending causally.

        Without a cache ``mask`` is [B, Tq]. With one, ``tokens`` stand at columns ``column``… of
        its S columns, of all rows or [B] of each; ``mask`` is [B, S] and covers them too; the new
        cache is returned as well.
        ``segments`` numbers the sequences that are packed into a row: each token attends within
        its own, and positions begin anew in each. ``layers``: the parameters of each, if they are
        not stacked.
        """
        config, queries = self.config, tokens.shape[1]
        counts = jnp.cumsum(mask, axis=-1)
        if segments is not None:
            counts = counts - _before_segment(counts, segments)
        positions = columns_from(column, jnp.maximum(counts - 1, 0), queries)
        first = jnp.expand_dims(column, (-2, -1))
        causal = first + jnp.arange(queries)[:, None] >= jnp.arange(mask.shape[1])
        distance = positions[:, :, None] - (counts - 1)[:, None]  # in tokens: columns may be empty
        kinds = list(dict.fromkeys(config.attends))
        ropes = jnp.stack([turns(kind.rope, positions) for kind in kinds])
        there = mask[:, None]
        if segments is not None:
            there = there & (segments[:, :, None] == segments[:, None])
        there = there & causal
        visible = jnp.stack([_within(there, distance, kind.window) for kind in kinds])
        kind_of = [kinds.index(kind) for kind in config.attends]
        rules = TRAINING if cache is None else SAMPLING
        rows_whole = functools.partial(lay, axes=("vocab", None), rules=rules)  # for the gather
        table = jax.tree.map(rows_whole, self.embed[...])
        x = dequantize(table[tokens]).astype(config.dtype)
        if config.embed_scale != 1.0:
            x = x * jnp.asarray(config.embed_scale, config.dtype)
        x = lay(x, STREAM, rules)
        copies = _kv_copies(config, rules)
        attend_over = attention_of(config, copies, mask, segments, cached=cache is not None)
        definition, stacked = nnx.split(self.layers)
        layers = stacked if layers is None else layers

        def layer(carry, inputs):
            x, cache = carry
            x = checkpoint_name(x, INPUT)
            index, kind, params = inputs
            kind = kind if len(kinds) > 1 else 0
            rope, seen = ropes[kind], visible[kind]

            def attend(q, k, v):
                # Each query sees the keys of all columns, wherever these lie.
                k, v = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
                if copies > 1:
                    k, v = (jnp.repeat(y, copies, axis=1) for y in (k, v))
                k, v = lay(k, KEYS, rules), lay(v, KEYS, rules)
                written = None if cache is None else write_cache(cache, k, v, index, column)
                if written is not None:
                    k, v = written.keys[index], written.values[index]
                return attend_over(lay(q, QUERIES, rules), k, v, seen, kind), written

            x, cache = nnx.merge(definition, params)(x, rope, attend, rules)
            return (lay(x, STREAM, rules), cache), None

        if config.remat != "none" and cache is None:
            layer = jax.checkpoint(layer, policy=REMAT[config.remat], prevent_cse=False)
        carry = x, cache
        if cache is not None and isinstance(cache.keys, tuple):
            if layers is stacked:
                layers = _unstacked(stacked, config.layers)
            for index, one in enumerate(layers):
                carry, _ = layer(carry, (index, kind_of[index], one))
        else:
            inputs = (jnp.arange(config.layers), jnp.array(kind_of), layers)
            carry, _ = jax.lax.scan(layer, carry, inputs)
        x, cache = carry
        x = self.norm(x)
        return x if cache is None else (x, cache)

    def readout(self, x):
        """Logits [..., V] or values [...], in float32."""
        tied = self.head_kind == "lm" and self.config.tied
        weight = self.embed[...] if tied else self.head[...]
        x, matrix = operands(x, weight)
        matrix = matrix.T if tied else matrix
        out = jnp.matmul(x, matrix, preferred_element_type=jnp.float32)
        if isinstance(weight, Quantized):
            out = out * weight.scale.reshape(-1)
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
        network, layers = merge(params)
        return network.hidden(tokens, mask, cache, column, segments, layers)

    def readout(params, hidden):
        return merge(params)[0].readout(hidden)

    def merge(params):
        """The network, and the parameters of each layer, if they are apart."""
        layers = params["layers"]
        if not isinstance(layers, tuple):
            return nnx.merge(definition, params), None
        return nnx.merge(definition, params | {"layers": layers[0]}), layers

    def unstack(params):
        if config.layers > MOST_UNROLLED:
            return params
        layers = _unstacked(params["layers"], config.layers)
        # Or XLA cuts them from the stack anew for every token.
        return params | {"layers": jax.lax.optimization_barrier(layers)}

    def init_cache(rows: int, columns: int) -> Cache:
        kv_heads = config.kv_heads * _kv_copies(config, SAMPLING)

        def zeros(*size):
            shape = (rows, kv_heads, *size)
            if config.layers > MOST_UNROLLED:
                return jnp.zeros((config.layers, *shape), config.dtype)
            return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.layers))

        return Cache(zeros(config.head_dim, columns), zeros(columns, config.head_dim))

    def axes_of(variable):
        axes = variable.get_metadata()["axes"]
        return axes if variable.ndim == len(axes) else ("layers", *axes)

    def sums_of(variable):
        return variable.get_metadata().get("sums", ())

    def cast(params):
        def at(path, leaf):
            return leaf if path[-1].key == "scale" else leaf.astype(config.dtype)  # norms: float32

        return jax.tree.map_with_path(at, params)

    axes = jax.tree.map(axes_of, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    parts = None
    if head == "lm" and config.vocab_size > config.vocab_at_once:
        parts = functools.partial(_head_parts, config)
    model = Model(init, apply, readout, init_cache, nnx.to_pure_dict(axes), cast, unstack, parts)
    sums = jax.tree.map(sums_of, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return model._replace(quantized=functools.partial(quantized, model, nnx.to_pure_dict(sums)))


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


def _unstacked(layers: Params, count: int) -> tuple[Params, ...]:
    def layer(index):
        return jax.tree.map(lambda x: x[index], layers)

    return tuple(layer(index) for index in range(count))


def _kv_copies(config: DecoderConfig, rules: Rules) -> int:
    """Of each key head, so that every device that has heads of queries has theirs and no others."""
    shards = axis_shards("heads", config.heads, rules)
    return shards // config.kv_heads if shards % config.kv_heads == 0 else 1


def _before_segment(counts, segments):
    """How many real tokens of the row stand before each token's segment."""
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], [(0, 0), (1, 0)])
    return jax.lax.cummax(jnp.where(first, counts - 1, 0), axis=1)


def _within(there, distance, window: int | None):
    """Which columns of those that are ``there`` a query sees, by how many tokens before it."""
    return there if window is None else there & (distance < window)
