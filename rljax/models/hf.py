"""Names and shapes: between our parameter tree and Hugging Face's."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rljax.models.transformer import DecoderConfig
from rljax.types import Params

# ours, below "layers" -> theirs, below "model.layers.N"; a matrix is stored [out, in] there
LAYER_NAMES = {
    ("attention_norm", "scale"): "input_layernorm",
    ("attention", "query"): "self_attn.q_proj",
    ("attention", "key"): "self_attn.k_proj",
    ("attention", "value"): "self_attn.v_proj",
    ("attention", "out"): "self_attn.o_proj",
    ("mlp_norm", "scale"): "post_attention_layernorm",
    ("mlp", "gate"): "mlp.gate_proj",
    ("mlp", "up"): "mlp.up_proj",
    ("mlp", "down"): "mlp.down_proj",
}


def hf_tensors(params: Params, config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a ``LlamaForCausalLM``, by name, one after another."""
    yield "model.embed_tokens.weight", np.asarray(params["embed"])
    for (module, name), theirs in LAYER_NAMES.items():
        stacked = np.asarray(params["layers"][module][name])
        for index, array in enumerate(stacked):
            yield f"model.layers.{index}.{theirs}.weight", _matrix(array, inward=name == "out")
    yield "model.norm.weight", np.asarray(params["norm"]["scale"])
    if not config.tied:
        yield "lm_head.weight", _matrix(np.asarray(params["head"]))


def _matrix(array: np.ndarray, inward: bool = False) -> np.ndarray:
    """[in, out...] or, ``inward``, [in..., out] to [out, in]; a vector stays as it is."""
    if array.ndim == 1:
        return array
    shape = (-1, array.shape[-1]) if inward else (array.shape[0], -1)
    return np.ascontiguousarray(array.reshape(shape).T)


def hf_config(config: DecoderConfig, *, max_position_embeddings: int) -> dict[str, Any]:
    """The keywords of a ``transformers.LlamaConfig`` for a decoder."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tied,
        "architectures": ["LlamaForCausalLM"],
    }
