"""The shape of a decoder, in its own terms: all that the families differ in."""

import dataclasses
from typing import Literal

from rljax.models.experts import Experts
from rljax.models.rope import Rope


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
