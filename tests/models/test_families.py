"""Every family against what transformers' own model computed, which ``reference`` has stored.

Then what a folder's config may say: in the old layout and the new, supported and not.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.zoo import (
    BASE,
    GOLDENS,
    LLAMA3,
    ZOO,
    assert_close,
    hf_config,
    import_folder,
    quick_jit,
    rope,
)
from safetensors.numpy import load_file
from transformers import AutoConfig

from rljax.errors import UserError
from rljax.host.weights import SINGLE, export_tensors
from rljax.models import decoder_config, fresh
from rljax.models.families import FAMILIES
from rljax.sharding import make_mesh

golden = functools.cache(lambda name: import_folder(GOLDENS / name))  # on one device


def expected_of(name):
    return load_file(GOLDENS / name / "expected.safetensors")


@pytest.mark.parametrize("name", ZOO)
def test_a_golden_is_of_the_case_that_it_is_named_after(name):
    stored = AutoConfig.from_pretrained(GOLDENS / name)
    assert decoder_config(stored) == decoder_config(hf_config(name)), "write the goldens anew"


def test_every_family_has_a_golden():
    assert {family for family, _ in ZOO.values()} == FAMILIES.keys()


@pytest.mark.parametrize("name", ZOO)
def test_logits_and_greedy_tokens(name):
    ours, expected = golden(name), expected_of(name)

    @quick_jit
    def both(*inputs):
        return ours.apply(*inputs), ours.continue_greedily(*inputs)

    logits, drawn = both(ours.params, expected["tokens"], expected["mask"])
    assert_close(logits, expected["logits"], expected["mask"])
    np.testing.assert_array_equal(drawn, expected["greedy"])


@pytest.mark.parametrize("name", ZOO)
def test_the_export_holds_what_was_imported(name, tmp_path):
    ours = golden(name)
    export_tensors(tmp_path, ours.tensors, ours.params, "bfloat16")
    exported, original = (load_file(folder / SINGLE) for folder in (tmp_path, GOLDENS / name))
    assert exported.keys() == original.keys()
    for key, tensor in original.items():
        assert exported[key].dtype == tensor.dtype
        np.testing.assert_array_equal(exported[key], tensor, err_msg=key)


# data x fsdp x tensor -> how much of the embedding [32, 16] a device holds
MESHES = {(8, 1, 1): (32, 16), (1, 8, 1): (32, 2), (1, 1, 8): (4, 16), (2, 2, 2): (16, 8)}


def on_mesh(name, sizes):
    mesh = make_mesh(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    return mesh, import_folder(GOLDENS / name, mesh)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("name", ["llama_biases", "phi3", "qwen3_moe"])
def test_eight_devices_hold_and_compute_what_one_does(name, sizes):
    mesh, ours = on_mesh(name, sizes)
    assert ours.params["embed"].addressable_shards[0].data.shape == MESHES[sizes]
    jax.tree.map(np.testing.assert_array_equal, ours.params, golden(name).params)
    stored = expected_of(name).items()
    expected = {key: array[np.arange(8) % len(array)] for key, array in stored}
    with jax.set_mesh(mesh):
        logits = quick_jit(ours.apply)(ours.params, expected["tokens"], expected["mask"])
    assert_close(logits, expected["logits"], expected["mask"], tolerance=1e-5)


def test_gradients_through_experts_on_eight_devices_equal_those_on_one():
    expected = expected_of("qwen3_moe")
    tokens, mask = expected["tokens"], expected["mask"]

    def gradient(ours, params):
        def loss(params):
            return jnp.where(mask, ours.apply(params, tokens, mask).std(axis=-1), 0).sum()

        return quick_jit(jax.grad(loss))(params)

    mesh, ours = on_mesh("qwen3_moe", (1, 1, 8))
    assert ours.params["layers"]["mlp"]["gate"].addressable_shards[0].data.shape == (3, 1, 16, 8)
    with jax.set_mesh(mesh):
        spread = gradient(ours, ours.params)
    for one, eight in zip(
        jax.tree.leaves(gradient(ours, golden("qwen3_moe").params)),
        jax.tree.leaves(spread),
        strict=True,
    ):
        assert np.abs(one).max() > 0
        assert_close(eight, one, ..., tolerance=1e-5)


LONG = {"short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 3.0, 4.0]}
LLAMA3_32 = LLAMA3 | {"original_max_position_embeddings": 32}
PHI3 = {"num_attention_heads": 2, "max_position_embeddings": 96}
LAYOUTS = {  # model_type, as configs were written before rope_parameters, and since
    "default": ("llama", {"rope_theta": 50.0}, rope("default", base=50.0)),
    "llama3": (
        "llama",
        {"rope_theta": 50.0, "rope_scaling": {"rope_type": "llama3"} | LLAMA3_32},
        rope("llama3", base=50.0, **LLAMA3_32),
    ),
    "yarn": (
        "qwen3",
        {
            "rope_theta": 1e6,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        },
        rope("yarn", base=1e6, factor=4.0, original_max_position_embeddings=16),
    ),
    "gemma3": (
        "gemma3_text",
        {
            "rope_theta": 1000.0,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "sliding_window_pattern": 2,
        },
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
            },
        },
    ),
    "longrope": (
        "phi3",
        PHI3
        | {
            "rope_theta": 50.0,
            "rope_scaling": {"type": "longrope"} | LONG,
            "original_max_position_embeddings": 32,
            "partial_rotary_factor": 0.75,
        },
        PHI3
        | {"original_max_position_embeddings": 32}
        | rope("longrope", base=50.0, partial_rotary_factor=0.75, **LONG),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_old_layout_of_a_config_means_what_the_new_one_does(name, tmp_path):
    model_type, *layouts = LAYOUTS[name]

    def read(keys):
        text = json.dumps({"model_type": model_type} | BASE | keys)
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        return decoder_config(AutoConfig.from_pretrained(tmp_path))

    old, new = map(read, layouts)
    assert old == new != read({})


@pytest.mark.parametrize(
    ("model_type", "keys", "said"),
    [
        ("gpt2", {}, r'the architecture "gpt2" is not supported; .*gemma2, .*smollm3'),
        ("qwen4", {}, 'did you mean "qwen'),
        ("llama", {"hidden_act": "relu"}, 'activation "relu" is none of silu, gelu_pytorch_tanh'),
        ("llama", rope("spiral"), 'rope_type "spiral" is not supported; known: default, linear'),
        ("llama", {"hidden_sise": 8}, 'unknown key "hidden_sise"; did you mean "hidden_size"'),
        ("gemma2", {"use_bidirectional_attention": True}, "bidirectional"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "layers without experts"),
    ],
)
def test_what_is_not_supported_is_named(model_type, keys, said):
    sizes = {key: value for key, value in BASE.items() if key != "vocab_size"}
    with pytest.raises(UserError, match=said):
        fresh(model_type=model_type, vocab_size=32, **(sizes | keys))
