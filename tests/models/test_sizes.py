"""Sizes that cannot be are refused by name, before anything is built from them."""

import pytest

from rljax.errors import UserError
from rljax.models import fresh

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("family", "wrong", "says"),
    [
        ("llama", {"num_key_value_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ("llama", {"num_hidden_layers": 0}, "layers must be at least 1, is 0"),
        (
            "llama",
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1,000,000,000, more than 4,096",
        ),
        (
            "qwen3",
            {"num_hidden_layers": 10**9},
            "num_hidden_layers is 1,000,000,000, more than 4,096",
        ),
        ("llama", {"intermediate_size": 2**31}, "intermediate_size is 2,147,483,648, more than"),
        ("llama", {"hidden_size": 2**20, "num_attention_heads": 1}, "head_dim is 1,048,576, more"),
        ("olmo2", {"num_attention_heads": 0}, "heads must be at least 1, is 0"),
        ("llama", {"head_dim": 3}, r"head_dim \(3\) must be even"),
        ("llama", {"hidden_size": "wide"}, "hidden_size"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "factor"),
        ("llama", {"rope_parameters": {"rope_type": ["default"]}}, "is not supported; known"),
        ("llama", {"rope_parameters": {"rope_theta": -1.0}}, "rope_theta must be above 0, is -1.0"),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10.0,
                    "short_factor": [2.0],
                    "long_factor": [2.0],
                    "original_max_position_embeddings": 32,
                }
            },
            "2 short factors are needed, got 1",
        ),
        ("granite", {"attention_multiplier": 0.0}, "attention_multiplier is 0.0, not above 0"),
        ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}, "to 3 of 2 experts"),
        ("gemma2", {"use_bidirectional_attention": True}, "bidirectional attention"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "layers without experts among those with"),
    ],
)
def test_what_cannot_be_is_refused(family, wrong, says):
    with pytest.raises(UserError, match=says) as error:
        fresh(model_type=family, **SIZES | wrong)
    assert "\n" not in str(error.value)


def test_gemma3_ignores_a_cap_on_its_scores_as_transformers_does():
    decoder, _ = fresh(model_type="gemma3_text", **SIZES, attn_logit_softcapping=5.0)
    assert decoder.attention_softcap is None
