"""A tiny model of every kind that the decoder takes, in the words of a Hugging Face config."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from transformers import AutoConfig, PreTrainedConfig

from rljax.host.weights import Weights, import_params
from rljax.models import DecoderConfig, decoder, decoder_config
from rljax.models.hf import Tensor, tensors_of
from rljax.sampling import sample
from rljax.sharding import make_mesh, param_shardings
from rljax.types import Model, Params, Prompts

BASE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,  # so that a greedy continuation never ends
}
NEW_TOKENS = 32  # of a greedy continuation
GOLDENS = Path(__file__).parent / "goldens"  # a folder for each case, as ``reference`` wrote it

# These programs run once or twice each, and take longer to compile well than to run.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def rope(kind: str, base: float = 100.0, **keys) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": base} | keys}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 11, "sliding_window": 4}
EXPERTS = {"head_dim": 8, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 8}

# A row of 42 tokens is longer than every window, and as long as ``dynamic`` and ``longrope`` allow.
ZOO: dict[str, tuple[str, dict]] = {
    "llama": ("llama", rope("default")),
    "llama_biases": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "num_attention_heads": 8, "head_dim": 4},
    ),
    "llama_tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama_linear": ("llama", {"head_dim": 8} | rope("linear", factor=2.0)),
    "llama_dynamic": ("llama", {"head_dim": 8} | rope("dynamic", factor=2.0)),
    "llama3": (
        "llama",
        {"head_dim": 8} | rope("llama3", original_max_position_embeddings=32, **LLAMA3),
    ),
    "llama_yarn": (
        "llama",
        {"head_dim": 8} | rope("yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    "mistral": ("mistral", {"head_dim": 8, "sliding_window": 5}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 10, "attention_bias": True}),
    "gemma2": (
        "gemma2",
        GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "gemma3_text",
        GEMMA
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
            },
        },
    ),
    "phi3": ("phi3", {"sliding_window": 6}),
    "phi3_longrope": (
        "phi3",
        {"num_attention_heads": 2, "num_key_value_heads": 1}
        | {"max_position_embeddings": 96, "original_max_position_embeddings": 42}
        | rope(
            "longrope",
            short_factor=[1.0, 1.5, 2.0],
            long_factor=[2.0, 3.0, 4.0],
            partial_rotary_factor=0.75,
        ),
    ),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "smollm3_window": (
        "smollm3",
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5},
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "mixtral": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 8}
        | {"sliding_window": 5},
    ),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"norm_topk_prob": True}),
    "qwen3_moe_raw": (
        "qwen3_moe",
        EXPERTS | {"norm_topk_prob": False, "use_sliding_window": True, "sliding_window": 5},
    ),
}


def hf_config(name: str, **keys) -> PreTrainedConfig:
    model_type, own = ZOO[name]
    return AutoConfig.for_model(model_type, **BASE | own | keys)


class Imported(NamedTuple):
    """A folder as rljax reads it."""

    hf: PreTrainedConfig
    config: DecoderConfig
    model: Model
    tensors: list[Tensor]
    params: Params

    def apply(self, params: Params, tokens, mask):
        """Logits, or the values of a scalar head."""
        return self.model.head(params, self.model.apply(params, tokens, mask))

    def continue_greedily(self, params: Params, tokens, mask):
        settings = {"max_tokens": NEW_TOKENS, "eos_ids": (self.config.vocab_size,), "pad_id": 0}
        prompts, key = Prompts(tokens, mask, {}), jax.random.key(0)
        rollout = sample(self.model, params, prompts, key, greedy=True, **settings)
        return rollout.tokens[:, tokens.shape[1] :]


def import_folder(folder: Path, mesh: Mesh | None = None, head="lm") -> Imported:
    """The model of a folder, by default on one device."""
    hf = AutoConfig.from_pretrained(folder)
    config = decoder_config(hf)
    model = decoder(config, head)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    tensors = tensors_of(abstract, config, hf.model_type)
    shardings = param_shardings(model.axes, abstract, mesh or make_mesh(jax.devices()[:1]))
    params = import_params(Weights(folder), tensors, abstract, shardings)
    return Imported(hf, config, model, tensors, params)


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of rows padded on the left, with tokens there too that must not be read."""
    tokens = np.random.default_rng(0).integers(3, BASE["vocab_size"], (3, 10))
    padding = np.array([0, 5, 2])[:, None]
    return tokens.astype(np.int32), np.arange(10) >= padding


def assert_close(ours, expected, mask, tolerance: float = 2e-5):
    """Equal at real tokens, up to ``tolerance`` of the largest."""
    expected = np.asarray(expected)[mask]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(ours)[mask], expected, rtol=0, atol=tolerance * scale)
