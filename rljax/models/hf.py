"""Names and shapes: between our parameter tree and the tensors of a Hugging Face folder.

A tensor there is a piece of one of our arrays, which are stacked over layers (and experts), or
several such pieces one below the other. A matrix is stored [out, in] there, and
[in..., out...] here.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from rljax.models.config import DecoderConfig
from rljax.trees import Path, find
from rljax.types import Params


class Piece(NamedTuple):
    """A part of one of our arrays: ``array[at]``, in rows ``start``… of a tensor."""

    path: Path
    at: tuple[int, ...]  # the layer and the expert, where there are such
    shape: tuple[int, ...]  # of array[at]
    inputs: int | None  # how many of its axes are a matrix's inputs; None: it is no matrix
    start: int  # its first row in the tensor


class Tensor(NamedTuple):
    """A tensor of a Hugging Face folder."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


# theirs, below "model.layers.N" -> ours, below "layers"; those that a model lacks are left out
LAYER: dict[str, tuple[str, ...]] = {
    "input_layernorm.weight": ("attention_norm/scale",),
    "self_attn.q_proj.weight": ("attention/query/kernel",),
    "self_attn.k_proj.weight": ("attention/key/kernel",),
    "self_attn.v_proj.weight": ("attention/value/kernel",),
    "self_attn.q_proj.bias": ("attention/query/bias",),
    "self_attn.k_proj.bias": ("attention/key/bias",),
    "self_attn.v_proj.bias": ("attention/value/bias",),
    "self_attn.q_norm.weight": ("attention/query_norm/scale",),
    "self_attn.k_norm.weight": ("attention/key_norm/scale",),
    "self_attn.o_proj.weight": ("attention/out/kernel",),
    "self_attn.o_proj.bias": ("attention/out/bias",),
    "mlp.gate_proj.weight": ("mlp/gate/kernel",),
    "mlp.up_proj.weight": ("mlp/up/kernel",),
    "mlp.down_proj.weight": ("mlp/down/kernel",),
    "mlp.gate_proj.bias": ("mlp/gate/bias",),
    "mlp.up_proj.bias": ("mlp/up/bias",),
    "mlp.down_proj.bias": ("mlp/down/bias",),
}
NORMS = {  # the same name stands for another norm where there are norms behind
    "before": {"post_attention_layernorm.weight": ("mlp_norm/scale",)},
    "after": {
        "post_attention_layernorm.weight": ("attention_post_norm/scale",),
        "post_feedforward_layernorm.weight": ("mlp_post_norm/scale",),
    },
    "both": {
        "post_attention_layernorm.weight": ("attention_post_norm/scale",),
        "pre_feedforward_layernorm.weight": ("mlp_norm/scale",),
        "post_feedforward_layernorm.weight": ("mlp_post_norm/scale",),
    },
}
EXPERTS = {
    "mlp.gate.weight": ("mlp/router",),
    "mlp.experts.{expert}.gate_proj.weight": ("mlp/gate",),
    "mlp.experts.{expert}.up_proj.weight": ("mlp/up",),
    "mlp.experts.{expert}.down_proj.weight": ("mlp/down",),
}
MIXTRAL = {
    "block_sparse_moe.gate.weight": ("mlp/router",),
    "block_sparse_moe.experts.{expert}.w1.weight": ("mlp/gate",),
    "block_sparse_moe.experts.{expert}.w3.weight": ("mlp/up",),
    "block_sparse_moe.experts.{expert}.w2.weight": ("mlp/down",),
}
FUSED = {
    "self_attn.qkv_proj.weight": (
        "attention/query/kernel",
        "attention/key/kernel",
        "attention/value/kernel",
    ),
    "mlp.gate_up_proj.weight": ("mlp/gate/kernel", "mlp/up/kernel"),
}
HEADS = {"lm": "lm_head.weight", "value": "score.weight"}
IGNORED = ("lm_head.weight", "score.weight")  # a head that this role has no use for
AT_ONCE = 2**21  # entries


def tensors_of(abstract: Params, config: DecoderConfig, model_type: str) -> list[Tensor]:
    """The tensors that a model of this family keeps for a tree of parameters.

    Args:
      abstract: the tree, of anything with shapes. Its ``head``, if there is one, is a
        language model's or a value model's by its last axis.
    """
    names = _layer_names(config, model_type)
    named = [("model.embed_tokens.weight", ("embed",))]
    named += [(f"model.layers.{{layer}}.{theirs}", ours) for theirs, ours in names]
    named.append(("model.norm.weight", ("norm/scale",)))
    if "head" in abstract:
        kind = "value" if abstract["head"].shape[-1] == 1 else "lm"
        named.append((HEADS[kind], ("head",)))
    return list(_tensors(named, abstract, config))


def _layer_names(config: DecoderConfig, model_type: str) -> list[tuple[str, tuple[str, ...]]]:
    names = LAYER | NORMS[config.norms]
    if config.experts:
        names = {k: v for k, v in names.items() if not k.startswith("mlp.")}
        names |= MIXTRAL if model_type == "mixtral" else EXPERTS
    if model_type == "phi3":
        fused = {path for paths in FUSED.values() for path in paths}
        names = {k: v for k, v in names.items() if v[0] not in fused} | FUSED
    return [(k, tuple(f"layers/{path}" for path in v)) for k, v in names.items()]


def _tensors(named, abstract: Params, config: DecoderConfig) -> Iterator[Tensor]:
    for template, names in named:
        paths = [tuple(name.split("/")) for name in names]
        arrays = [find(abstract, path) for path in paths]
        if any(array is None for array in arrays):
            continue
        layers = range(config.layers) if "{layer}" in template else [None]
        experts = range(config.experts.count) if "{expert}" in template else [None]
        for layer in layers:
            for expert in experts:
                at = tuple(i for i in (layer, expert) if i is not None)
                name = template.format(layer=layer, expert=expert)
                yield _tensor(name, paths, arrays, at)


def _tensor(name: str, paths: list[Path], arrays, at: tuple[int, ...]) -> Tensor:
    pieces, row = [], 0
    for path, array in zip(paths, arrays, strict=True):
        piece = Piece(path, at, tuple(array.shape[len(at) :]), _inputs(path), row)
        pieces.append(piece)
        row += stored_shape(piece)[0]
    return Tensor(name, (row, *stored_shape(pieces[0])[1:]), tuple(pieces))


def _inputs(path: Path) -> int | None:
    """How many axes of a parameter, behind those of layers and experts, are a matrix's inputs."""
    if path[-1] in ("embed", "scale", "bias"):
        return None
    return 2 if path[-2:] in (("out", "kernel"), ("out", "lora_a")) else 1


def stored_shape(piece: Piece) -> tuple[int, ...]:
    """The shape of a piece in its tensor."""
    if piece.inputs is None:
        return piece.shape if piece.path[-1] == "embed" else (math.prod(piece.shape),)
    return math.prod(piece.shape[piece.inputs :]), math.prod(piece.shape[: piece.inputs])


def from_stored(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    piece: Piece,
    index: tuple[slice, ...],
    dtype: np.dtype,
) -> np.ndarray:
    """``array[at][index]`` of one of our arrays, reading no more of its tensor than that, and no
    more at a time than ``AT_ONCE`` entries.

    ``read`` gives a part of the tensor. Only the first of a matrix's input axes may be divided, and
    the first of its output axes, as only these are spread over devices.
    """
    bounds = [range(*part.indices(size)) for part, size in zip(index, piece.shape, strict=True)]
    shape = [len(bound) for bound in bounds]
    if piece.inputs is None and piece.path[-1] != "embed":
        return read((_flat(bounds, piece.shape, piece.start),)).reshape(shape).astype(dtype)
    split = 1 if piece.inputs is None else piece.inputs  # an embedding is no matrix to turn
    first = _flat(bounds[:split], piece.shape[:split], 0)
    second = _flat(bounds[split:], piece.shape[split:], 0)
    rows, columns = (first, second) if piece.inputs is None else (second, first)
    result = np.empty((first.stop - first.start, second.stop - second.start), dtype)
    turned = result if piece.inputs is None else result.T
    step = max(1, AT_ONCE // max(1, columns.stop - columns.start))
    for row in range(rows.start, rows.stop, step):
        until = min(row + step, rows.stop)
        part = read((slice(piece.start + row, piece.start + until), columns))
        turned[row - rows.start : until - rows.start] = part
    return result.reshape(shape)


def to_stored(piece: Piece, array: np.ndarray) -> np.ndarray:
    """``array[at]`` of one of our arrays, as it stands in its tensor, in C order: safetensors
    writes the memory of an array whatever its strides."""
    rows, *columns = stored_shape(piece)
    if piece.inputs is None:
        return np.ascontiguousarray(array.reshape(rows, *columns))
    return np.ascontiguousarray(array.reshape(*columns, rows).T)


def _flat(bounds: list[range], sizes: tuple[int, ...], start: int) -> slice:
    """The slice of the flattened axes that ``bounds`` of their first axis, and all of the others,
    make; moved by ``start``."""
    assert [len(bound) for bound in bounds[1:]] == list(sizes[1:])
    inner = math.prod(sizes[1:])
    return slice(start + bounds[0].start * inner, start + bounds[0].stop * inner)


def module_names(config: DecoderConfig, model_type: str) -> dict[str, tuple[str, ...]]:
    """The matrices of a layer that adapters may stand beside: the family's name -> ours.

    >>> from rljax.models.families import llama
    >>> architecture = llama(vocab_size=8, layers=1, width=8, heads=2)
    >>> module_names(architecture.decoder, "llama")["self_attn.o_proj"]
    ('out',)
    """
    return {
        theirs.removesuffix(".weight"): tuple(path.split("/")[-2] for path in ours)
        for theirs, ours in _layer_names(config, model_type)
        if all(path.endswith("/kernel") for path in ours)
    }


def adapter_tensors(
    adapters: Params, config: DecoderConfig, model_type: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Adapters by PEFT's names: A as [rank, in], B as [out, rank].

    Of matrices that the family keeps as one, the As stand one below the other, and the Bs on the
    diagonal of one B.
    """
    for theirs, ours in _layer_names(config, model_type):
        pairs = [find(adapters, tuple(path.split("/")[:-1])) for path in ours]
        if not ours[0].endswith("/kernel") or None in pairs:
            continue
        module = theirs.removesuffix(".weight")
        for layer in range(config.layers):
            downs, ups = [], []
            for path, pair in zip(ours, pairs, strict=True):
                for leaf, into in (("lora_a", downs), ("lora_b", ups)):
                    at = (*path.split("/")[:-1], leaf)
                    array = np.asarray(pair[leaf][layer])
                    piece = Piece(at, (layer,), array.shape, _inputs(at), 0)
                    into.append(to_stored(piece, array))
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            yield f"{prefix}.lora_A.weight", np.concatenate(downs)
            yield f"{prefix}.lora_B.weight", _diagonal(ups)


def _diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    """One matrix with the blocks on its diagonal."""
    sizes = np.cumsum([[0, 0], *[block.shape for block in blocks]], axis=0)
    whole = np.zeros(sizes[-1], blocks[0].dtype)
    for block, (row, column) in zip(blocks, sizes, strict=False):
        whole[row : row + block.shape[0], column : column + block.shape[1]] = block
    return whole
