"""The exported folder, without torch."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer, GenerationConfig

from rljax.host.export import export_hf
from rljax.models import decoder, llama
from rljax.models.hf import hf_tensors
from rljax.tasks import character_tokenizer

TOKENIZER = character_tokenizer()
CONFIG = llama(vocab_size=100, layers=2, width=8, heads=2, kv_heads=1, mlp_width=12, rope_base=50.0)
PARAMS = decoder(CONFIG).init(jax.random.key(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "policy"
    for _ in range(2):  # the second replaces the first
        export_hf(
            folder,
            PARAMS,
            CONFIG,
            TOKENIZER,
            eos_ids=(2, 5),
            max_tokens=80,
            temperature=0.7,
            top_k=None,
            top_p=0.9,
            min_p=None,
        )
    return folder


def test_the_tensors_are_bitwise_ours_under_their_names(folder):
    tensors = load_file(folder / "model.safetensors")
    assert tensors.keys() == dict(hf_tensors(PARAMS, CONFIG)).keys()
    down = np.asarray(PARAMS["layers"]["mlp"]["down"])[1]  # [in, out] here, [out, in] there
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.down_proj.weight"], down.T)
    query = np.asarray(PARAMS["layers"]["attention"]["query"])[0]  # [width, heads, size]
    np.testing.assert_array_equal(
        tensors["model.layers.0.self_attn.q_proj.weight"][5], query[:, 1, 1]
    )


def test_the_config_says_the_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_key_value_heads"], config["head_dim"]) == (1, 4)
    assert config["rope_parameters"]["rope_theta"] == 50.0
    assert config["max_position_embeddings"] == 80


def test_a_server_draws_as_training_did(folder):
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == [2, 5]
    assert (generation.temperature, generation.top_k, generation.top_p) == (0.7, 0, 0.9)


def test_the_tokenizer_round_trips(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("12+3= #15\n", add_special_tokens=False)["input_ids"]
    assert ids == TOKENIZER("12+3= #15\n", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "12+3= #15\n"
    assert tokenizer.padding_side == "left"


def test_nothing_half_written_is_left(folder):
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]
