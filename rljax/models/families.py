"""Model families: each a function from a Hugging Face config to the one decoder's.

Beside them two that start from nothing: ``llama``, in the decoder's own terms, and ``fresh``, in
those of any family's Hugging Face config.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from rljax.errors import UserError, nearest
from rljax.models.config import Attends, DecoderConfig
from rljax.models.experts import Experts
from rljax.models.rope import Rope, no_rope, rope_from_hf

__all__ = ["fresh", "llama"]

EXTRA_KEYS = {"head_dim", "rope_theta", "rope_scaling"}  # which every config takes
UNREAD_KEYS = {  # which change nothing here
    "architectures",
    "attention_dropout",
    "chunk_size_feed_forward",
    "dtype",
    "embd_pdrop",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "transformers_version",
    "use_cache",
}

MOST = 2**31 - 1  # of any size
MOST_OF = {  # of what is written out one by one
    "num_hidden_layers": 4096,
    "head_dim": 2**16,
    "num_experts": 2**16,
    "num_local_experts": 2**16,
}

Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "full", "dots", "offload"]


class Architecture(NamedTuple):
    """The shape of a model: as the decoder takes it, and as its Hugging Face folder says it."""

    decoder: DecoderConfig
    hf: PreTrainedConfig

    @property
    def max_positions(self) -> int:
        """The longest row that it can be asked for, in tokens."""
        limits = [attends.rope.max_positions for attends in self.decoder.attends]
        return min([self.hf.max_position_embeddings, *(n for n in limits if n is not None)])


def llama(
    *,
    vocab_size: int,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    mlp_width: int | None = None,
    rope_base: float = 10_000.0,
    norm_eps: float = 1e-6,
    tied: bool = True,
    max_positions: int = 2048,
    dtype: Dtype = "float32",
    remat: Remat = "none",
) -> Architecture:
    """A Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Args:
      kv_heads: heads of keys and values; by default as many as ``heads``.
      head_dim: by default width / heads.
      mlp_width: by default 8/3 of the width, rounded up to a multiple of 64.
      tied: the embedding serves as the output head too.
      max_positions: the longest sequence that it may be asked for, in tokens.
      dtype: of the arithmetic.
      remat: what the backward pass keeps, see ``DecoderConfig``.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    if rope_base <= 1 or norm_eps < 0:
        raise UserError(f"llama: needs rope_base > 1, norm_eps >= 0; got {rope_base}, {norm_eps}")
    if head_dim is None:
        if heads < 1 or width % heads:
            raise UserError(f"llama: width ({width}) must be a multiple of heads ({heads})")
        head_dim = width // heads
    if mlp_width is None:
        mlp_width = -(-8 * width // (3 * 64)) * 64
    return fresh(
        model_type="llama",
        vocab_size=vocab_size,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=mlp_width,
        rope_parameters={"rope_type": "default", "rope_theta": rope_base},
        rms_norm_eps=norm_eps,
        tie_word_embeddings=tied,
        max_position_embeddings=max_positions,
        dtype=dtype,
        remat=remat,
    )


def fresh(
    *,
    model_type: str,
    vocab_size: int,
    dtype: Dtype = "float32",
    remat: Remat = "none",
    **sizes: Any,
) -> Architecture:
    """A model of any family, its weights drawn at random.

    Args:
      model_type: the family, as a Hugging Face config names it, such as ``qwen3``.
      sizes: the keywords of that config: hidden_size, num_hidden_layers, …
      dtype, remat: as for ``llama``.
    """
    check_family(model_type, "model_type")
    known = EXTRA_KEYS | {size.name for size in sizes_of(model_type)}
    for name in sizes:
        if name not in known:
            raise UserError(f'fresh: unknown key "{name}"; {nearest(name, known)}')
    check_most({"vocab_size": vocab_size, **sizes}, model_type)
    try:
        hf = AutoConfig.for_model(model_type, vocab_size=vocab_size, **sizes)
    except Exception as error:  # its own checks, of several kinds
        raise UserError(f"fresh: {' '.join(str(error).split())}") from error
    hf.architectures = [class_name(hf, "lm")]
    return Architecture(decoder_config(hf, dtype=dtype, remat=remat), hf)


def sizes_of(model_type: str) -> list[dataclasses.Field]:
    """The keywords of a family's Hugging Face config that change something here."""
    fields = dataclasses.fields(CONFIG_MAPPING[model_type])
    return [field for field in fields if field.name not in UNREAD_KEYS]


def class_name(hf: PreTrainedConfig, head: Literal["lm", "value"]) -> str | None:
    """The transformers class of a family with a head, or None if there is none."""
    tables = {
        "lm": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "value": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    return tables[head].get(hf.model_type)


def check_family(model_type: Any, where: str = "model_type") -> None:
    """Raises ``UserError`` for an architecture that is none of ours."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = nearest(str(model_type), FAMILIES)
        raise UserError(f'{where}: the architecture "{model_type}" is not supported; {known}')


def check_most(sizes: Mapping[str, Any], where: str) -> None:
    """Raises ``UserError`` for a number in a Hugging Face config that is too large to be one of a
    model, before anything is made of that size."""
    for name, size in sizes.items():
        most = MOST_OF.get(name, MOST)
        if isinstance(size, int) and size > most:
            raise UserError(f"{where}: {name} is {size:,}, more than {most:,}")


def decoder_config(
    hf: PreTrainedConfig, *, dtype: Dtype = "float32", remat: Remat = "none"
) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises ``UserError`` for an unknown family, or for something that the decoder does not do.
    """
    check_family(hf.model_type)
    activation = getattr(hf, "hidden_activation", None) or getattr(hf, "hidden_act", "silu")
    if activation not in ACTIVATION_NAMES:
        known = ", ".join(ACTIVATION_NAMES)
        raise UserError(f'{hf.model_type}: activation "{activation}" is none of {known}')
    if hf.num_hidden_layers < 1:
        raise UserError(f"{hf.model_type}: layers must be at least 1, is {hf.num_hidden_layers}")
    if hf.num_attention_heads < 1:
        raise UserError(f"{hf.model_type}: heads must be at least 1, is {hf.num_attention_heads}")
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    check_most({"head_dim": head_dim}, hf.model_type)
    common = {
        "vocab_size": hf.vocab_size,
        "layers": hf.num_hidden_layers,
        "width": hf.hidden_size,
        "heads": hf.num_attention_heads,
        "kv_heads": hf.num_key_value_heads or hf.num_attention_heads,
        "head_dim": head_dim,
        "mlp_width": hf.intermediate_size,
        "norm_eps": hf.rms_norm_eps,
        "tied": bool(hf.tie_word_embeddings),
        "activation": ACTIVATION_NAMES[activation],
        "dtype": dtype,
        "remat": remat,
    }
    decoder = DecoderConfig(**common | FAMILIES[hf.model_type](hf, head_dim))
    _check_sizes(hf.model_type, decoder)
    return decoder


def _check_sizes(family: str, c: DecoderConfig) -> None:
    for name in ("vocab_size", "width", "heads", "kv_heads", "head_dim", "mlp_width"):
        if getattr(c, name) < 1:
            raise UserError(f"{family}: {name} must be at least 1, is {getattr(c, name)}")
    if c.heads % c.kv_heads:
        raise UserError(
            f"{family}: heads ({c.heads}) must be a multiple of kv_heads ({c.kv_heads})"
        )
    if c.head_dim % 2:
        raise UserError(f"{family}: head_dim ({c.head_dim}) must be even, for the rotary embedding")
    if c.experts and not 1 <= c.experts.per_token <= c.experts.count:
        raise UserError(
            f"{family}: a token cannot go to {c.experts.per_token} of {c.experts.count} experts"
        )


ACTIVATION_NAMES = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def _rope(hf: PreTrainedConfig, head_dim: int, kind: str | None = None) -> Rope:
    given = hf.rope_parameters if kind is None else hf.rope_parameters[kind]
    return rope_from_hf(given, head_dim=head_dim, max_positions=hf.max_position_embeddings)


def _alike(hf, head_dim, window: int | None = None) -> tuple[Attends, ...]:
    """Every layer attends in the same way."""
    return (Attends(_rope(hf, head_dim), window),) * hf.num_hidden_layers


def _by_layer_type(hf, head_dim) -> tuple[Attends, ...]:
    """Layers of ``sliding_attention`` have the window, those of ``full_attention`` none."""
    return tuple(
        Attends(_rope(hf, head_dim), hf.sliding_window if kind == "sliding_attention" else None)
        for kind in hf.layer_types
    )


def _llama(hf, head_dim) -> dict[str, Any]:
    """Llama 2 and 3."""
    return {
        "attends": _alike(hf, head_dim),
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
        "mlp_bias": hf.mlp_bias,
    }


def _mistral(hf, head_dim) -> dict[str, Any]:
    """Mistral: Llama's layers, in a sliding window."""
    return {"attends": _alike(hf, head_dim, hf.sliding_window)}


def _qwen2(hf, head_dim) -> dict[str, Any]:
    """Qwen2 and 2.5: biases on queries, keys and values."""
    return {"attends": _by_layer_type(hf, head_dim), "qkv_bias": True}


def _qwen3(hf, head_dim) -> dict[str, Any]:
    """Qwen3: queries and keys normalised by head."""
    return {
        "attends": _by_layer_type(hf, head_dim),
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
        "qk_norm": "head",
    }


def _qwen3_moe(hf, head_dim) -> dict[str, Any]:
    """Qwen3 with experts in every layer."""
    if hf.mlp_only_layers or hf.decoder_sparse_step != 1:
        raise UserError("qwen3_moe: layers without experts among those with are not supported")
    return {
        "attends": _alike(hf, head_dim, hf.sliding_window),
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
        "qk_norm": "head",
        "mlp_width": hf.moe_intermediate_size,
        "experts": Experts(hf.num_experts, hf.num_experts_per_tok, hf.norm_topk_prob),
    }


def _mixtral(hf, head_dim) -> dict[str, Any]:
    """Mixtral: Mistral with experts in every layer."""
    return {
        "attends": _alike(hf, head_dim, hf.sliding_window),
        "experts": Experts(hf.num_local_experts, hf.num_experts_per_tok, normalize=True),
    }


def _gemma(hf) -> dict[str, Any]:
    if hf.use_bidirectional_attention:
        raise UserError(f"{hf.model_type}: bidirectional attention is not supported")
    if hf.query_pre_attn_scalar <= 0:
        raise UserError(f"{hf.model_type}: query_pre_attn_scalar must be above 0")
    return {
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
        "norms": "both",
        "norm_offset": 1.0,
        "attention_divisor": hf.query_pre_attn_scalar**0.5,
        "attention_softcap": hf.attn_logit_softcapping,
        "logit_softcap": hf.final_logit_softcapping,
        "embed_scale": hf.hidden_size**0.5,
    }


def _gemma2(hf, head_dim) -> dict[str, Any]:
    """Gemma 2: norms on both sides, soft caps, every other layer in a window."""
    return _gemma(hf) | {"attends": _by_layer_type(hf, head_dim)}


def _gemma3(hf, head_dim) -> dict[str, Any]:
    """Gemma 3, of text: five layers in a window to each without."""
    windows = {"sliding_attention": hf.sliding_window, "full_attention": None}
    attends = tuple(Attends(_rope(hf, head_dim, kind), windows[kind]) for kind in hf.layer_types)
    return _gemma(hf) | {"attends": attends, "qk_norm": "head", "attention_softcap": None}


def _phi3(hf, head_dim) -> dict[str, Any]:
    """Phi-3 and 4."""
    return {"attends": _alike(hf, head_dim, hf.sliding_window)}


def _olmo2(hf, head_dim) -> dict[str, Any]:
    """OLMo 2: norms behind the layers, and of whole queries and keys."""
    return {
        "attends": _alike(hf, head_dim),
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
        "norms": "after",
        "qk_norm": "all",
    }


def _smollm3(hf, head_dim) -> dict[str, Any]:
    """SmolLM3: some layers have no rotary positions."""
    if len(hf.no_rope_layers) < hf.num_hidden_layers:
        raise UserError("smollm3: no_rope_layers has fewer entries than there are layers")
    attends = tuple(
        kind if turned else Attends(no_rope(2 * len(kind.rope.frequencies)), kind.window)
        for kind, turned in zip(_by_layer_type(hf, head_dim), hf.no_rope_layers, strict=False)
    )
    return _llama(hf, head_dim) | {"attends": attends}


def _granite(hf, head_dim) -> dict[str, Any]:
    """Granite: Llama's layers with multipliers of their own."""
    if hf.attention_multiplier <= 0:
        raise UserError(f"granite: attention_multiplier is {hf.attention_multiplier}, not above 0")
    return _llama(hf, head_dim) | {
        "attention_divisor": 1 / hf.attention_multiplier,
        "embed_scale": hf.embedding_multiplier,
        "residual_scale": hf.residual_multiplier,
        "logit_divisor": hf.logits_scaling,
    }


FAMILIES: dict[str, Callable[[PreTrainedConfig, int], dict[str, Any]]] = {
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "granite": _granite,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "smollm3": _smollm3,
}
