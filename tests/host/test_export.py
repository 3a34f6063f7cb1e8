"""Exported folders, as another program opens them; that needs no torch."""

import dataclasses
import json

import numpy as np
import pytest
from folders import SAMPLING, TURNS, numbers, shape_of
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from rljax.errors import UserError
from rljax.host.export import export_adapters, export_model, model_card
from rljax.models import decoder
from rljax.models.lora import is_adapter, make_lora
from rljax.tasks import character_tokenizer
from rljax.trees import select

TOKENIZER = character_tokenizer()
TOKENIZER.chat_template = TURNS
LLAMA = shape_of(rope_parameters={"rope_type": "default", "rope_theta": 50.0})
PARAMS = numbers(decoder(LLAMA.decoder))
CARD = model_card("some/base", {"role": "policy", "step": 7, "accuracy_greedy": "0.5"})


def export(folder, architecture=LLAMA, head="lm", params=PARAMS, **settings):
    settings = {"dtype": "float32", "eos_ids": (5, 2), "sampling": SAMPLING} | settings
    export_model(folder, params, architecture, head, TOKENIZER, card=CARD, **settings)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def generation_of(folder):
    return GenerationConfig.from_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(tmp_path_factory.mktemp("export") / "policy")


def assert_bitwise(ours, expected):
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        assert ours[name].dtype == array.dtype, name
        np.testing.assert_array_equal(ours[name], array, err_msg=name, strict=True)


def stored(params):
    """The tensors of a Llama by their names, [out, in]."""
    layers, width = params["layers"], params["embed"].shape[1]
    tensors = {
        "model.embed_tokens.weight": params["embed"],
        "model.norm.weight": params["norm"]["scale"],
        "lm_head.weight": params["head"].T,
    }
    for i in range(2):
        for name, matrix in layers["attention"].items():
            lead = (-1, width) if name == "out" else (width, -1)
            theirs = f"self_attn.{name[0]}_proj"
            tensors[f"model.layers.{i}.{theirs}.weight"] = matrix["kernel"][i].reshape(lead).T
        for name, matrix in layers["mlp"].items():
            tensors[f"model.layers.{i}.mlp.{name}_proj.weight"] = matrix["kernel"][i].T
        norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
        for theirs, ours in norms.items():
            tensors[f"model.layers.{i}.{theirs}.weight"] = layers[ours]["scale"][i]
    return tensors


def test_the_tensors_are_bitwise_ours_under_their_names(folder):
    assert_bitwise(weights(folder), stored(PARAMS))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_to_the_dtype_that_the_config_says(tmp_path, dtype):
    folder = export(tmp_path / "policy", dtype=dtype)
    assert config_of(folder)["dtype"] == dtype
    rounded = {name: array.astype(dtype) for name, array in stored(PARAMS).items()}
    assert_bitwise(weights(folder), rounded)


def test_the_config_says_the_shape_and_the_special_tokens(folder):
    config = config_of(folder)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert config["eos_token_id"] == [5, 2]
    assert (config["pad_token_id"], config["bos_token_id"]) == (0, 1)
    assert config["max_position_embeddings"] == 64
    assert config["rope_parameters"]["rope_theta"] == 50.0
    given, kept = LLAMA.hf.to_dict(), AutoConfig.from_pretrained(folder).to_dict()
    ours = {"dtype", "eos_token_id", "pad_token_id", "bos_token_id", "_name_or_path"}
    assert {k for k in given if kept[k] != given[k]} <= ours


def test_the_config_that_it_was_made_from_stays_as_it_is(tmp_path):
    before = LLAMA.hf.to_dict()
    params = numbers(decoder(LLAMA.decoder, "value"))
    export(tmp_path / "value", head="value", params=params, dtype="bfloat16")
    assert LLAMA.hf.to_dict() == before


def test_one_eos_id_is_a_number(tmp_path):
    folder = export(tmp_path / "policy", eos_ids=(5,))
    assert config_of(folder)["eos_token_id"] == 5
    assert generation_of(folder).eos_token_id == 5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None}),
        ({"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.1}, {}),
    ],
    ids=["no limits", "limits"],
)
def test_a_server_draws_as_training_did(tmp_path, given, expected):
    generation = generation_of(export(tmp_path / "policy", sampling=SAMPLING | given))
    assert generation.do_sample
    assert generation.eos_token_id == [5, 2]
    assert generation.pad_token_id == 0
    for name, value in (given | expected).items():
        assert getattr(generation, name) == value, name


def test_the_tokenizer_and_its_chat_template_survive(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "12+3= #15\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.padding_side == "left"
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    turns = [{"role": "user", "content": "1+1="}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "user: 1+1=\n"


def test_the_card_tells_the_base_and_how_it_did(folder):
    card = (folder / "README.md").read_text()
    head, front, text = card.split("---\n")
    assert head == ""
    assert "library_name: transformers" in front
    assert "Trained from some/base with rljax" in text
    assert "| role | policy |\n| step | 7 |\n| accuracy_greedy | 0.5 |\n" in text
    assert "Trained from scratch with" in model_card(None, {})


def test_a_tied_model_has_no_head_of_its_own(tmp_path):
    tied = shape_of(tie_word_embeddings=True)
    folder = export(tmp_path / "policy", tied, params=numbers(decoder(tied.decoder)))
    assert weights(folder).keys() == stored(PARAMS).keys() - {"lm_head.weight"}
    assert config_of(folder)["tie_word_embeddings"] is True


def test_a_value_model_is_a_classifier_of_one_label(tmp_path):
    params = numbers(decoder(LLAMA.decoder, "value"))
    folder = export(tmp_path / "value", head="value", params=params)
    assert config_of(folder)["architectures"] == ["LlamaForSequenceClassification"]
    assert AutoConfig.from_pretrained(folder).num_labels == 1
    assert not (folder / "generation_config.json").exists()
    tensors = weights(folder)
    assert tensors["score.weight"].shape == (1, 16)
    assert_bitwise(
        tensors,
        {name.replace("lm_head", "score"): array for name, array in stored(params).items()},
    )


def test_a_family_without_a_classifier_is_refused(tmp_path):
    granite = shape_of("granite")
    params = numbers(decoder(granite.decoder, "value"))
    with pytest.raises(UserError, match="transformers has no granite with a scalar head"):
        export(tmp_path / "value", granite, "value", params)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_whole(tmp_path):
    """Nothing of the one before stays, nor of one that was cut off."""
    folder = export(tmp_path / "policy", dtype="float16")
    (folder / "model-00001-of-00002.safetensors").touch()
    cut_off = tmp_path / ".policy.rljax-partial"
    cut_off.mkdir()
    (cut_off / "config.json").touch()
    (cut_off / "more.json").touch()
    export(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert_bitwise(weights(folder), stored(PARAMS))
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(
    ("where", "error"),
    [
        (
            "transformers.PreTrainedTokenizerFast.save_pretrained",
            OSError(28, "No space left on device"),
        ),
        (
            "rljax.host.weights.save_file",
            SafetensorError("I/O error: No space left on device (os error 28)"),
        ),
    ],
    ids=["texts", "weights"],
)
def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, where, error):
    folder = export(tmp_path / "policy")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_, **__):
        raise error

    monkeypatch.setattr(where, full)
    with pytest.raises(UserError, match=r"cannot export to .*policy: .*No space left on device"):
        export(folder, dtype="float16")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "policy"):
        with pytest.raises(UserError, match=rf"cannot export to {place}"):
            export(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("the only copy")
    with pytest.raises(UserError, match=str(tmp_path)):
        export(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "the only copy"


def test_folders_beside_it_that_are_not_ours_stay(tmp_path):
    others = [tmp_path / f"policy{end}" for end in (".partial", ".old")]
    for other in others:
        other.mkdir()
        (other / "notes.txt").touch()
    export(tmp_path / "policy")
    export(tmp_path / "policy")
    assert all((other / "notes.txt").exists() for other in others)


def adapted(model_type="llama", **keywords):
    """An architecture, adapters for it, and their parameters."""
    architecture = shape_of(model_type)
    lora = make_lora(architecture.decoder, model_type, **keywords)
    model = decoder(dataclasses.replace(architecture.decoder, lora=lora))
    return architecture, lora, select(numbers(model), is_adapter)


def export_adapted(folder, architecture, lora, adapters):
    export_adapters(folder, adapters, architecture, lora, TOKENIZER, base="some/base", card=CARD)
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


def test_adapters_are_bitwise_ours_under_the_names_of_peft(tmp_path):
    architecture, lora, adapters = adapted(rank=3, alpha=5.0, targets=["?_proj", "down_proj"])
    config, tensors = export_adapted(tmp_path / "policy", architecture, lora, adapters)
    expected = {}
    for i in range(2):
        for name in ("query", "key", "value", "out", "down"):
            matrix = adapters["layers"]["mlp" if name == "down" else "attention"][name]
            place = "mlp.down_proj" if name == "down" else f"self_attn.{name[0]}_proj"
            path = f"base_model.model.model.layers.{i}.{place}.lora"
            expected[f"{path}_A.weight"] = matrix["lora_a"][i].reshape(-1, 3).T
            expected[f"{path}_B.weight"] = matrix["lora_b"][i].reshape(3, -1).T
    assert_bitwise(tensors, expected)
    assert config == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "some/base",
        "r": 3,
        "lora_alpha": 5.0,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": [
            "mlp.down_proj",
            "self_attn.k_proj",
            "self_attn.o_proj",
            "self_attn.q_proj",
            "self_attn.v_proj",
        ],
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def test_adapters_come_with_tokenizer_and_card_and_without_their_base(tmp_path):
    export_adapted(tmp_path / "policy", *adapted(rank=2))
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_adapters_of_a_fused_matrix_are_the_separate_ones_side_by_side(tmp_path):
    architecture, lora, adapters = adapted("phi3", rank=2, alpha=6.0)
    config, tensors = export_adapted(tmp_path / "policy", architecture, lora, adapters)
    fused = {
        "self_attn.qkv_proj": [
            adapters["layers"]["attention"][n] for n in ("query", "key", "value")
        ],
        "mlp.gate_up_proj": [adapters["layers"]["mlp"][n] for n in ("gate", "up")],
    }
    assert config["rank_pattern"] == {"self_attn.qkv_proj": 6, "mlp.gate_up_proj": 4}
    assert config["alpha_pattern"] == {"self_attn.qkv_proj": 18.0, "mlp.gate_up_proj": 12.0}
    assert (config["r"], config["lora_alpha"]) == (2, 6.0)
    assert config["target_modules"] == sorted([*fused, "self_attn.o_proj", "mlp.down_proj"])
    for i in range(2):
        for name, matrices in fused.items():
            path = f"base_model.model.model.layers.{i}.{name}.lora"
            a, b = tensors[f"{path}_A.weight"], tensors[f"{path}_B.weight"]
            assert a.shape == (2 * len(matrices), 16)
            products = [
                m["lora_a"][i] @ m["lora_b"][i].reshape(2, -1) for m in matrices
            ]  # [in, out]
            np.testing.assert_allclose(b @ a, np.concatenate(products, axis=1).T, rtol=1e-5)
    assert len(tensors) == 2 * 2 * 4
