"""``rljax doctor``: what a folder is, and what is wrong with it."""

import json
import re

import pytest
from folders import edit_json, shape_of, tokenizer_of, write_folder
from safetensors.numpy import load_file, save_file

from rljax import doctor
from rljax.doctor import examine, memory_table, parameter_count
from rljax.errors import UserError
from rljax.host.pretrained import Pretrained, pretrained

# Layers of four heads of 4 (two of keys and values), three matrices of the MLP, two norms.
LAYERS = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24 + 2 * 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor") / "llama"
    write_folder(folder)
    return folder


@pytest.fixture
def made(tmp_path):
    """The facts of a folder that is written for the purpose."""

    def facts_of(*arguments, **keywords):
        write_folder(tmp_path / "model", *arguments, **keywords)
        return examine(pretrained(tmp_path / "model"))

    return facts_of


def test_every_fact_of_a_language_model(folder):
    assert examine(pretrained(folder)) == {
        "architecture": "LlamaForCausalLM (language model), supported",
        "parameters": f"{LAYERS + 2 * 104 * 16 + 16:,}, stored as float32",
        "layers": "2 of width 16, 4 heads (2 of keys and values) of 4",
        "positions": "64",
        "embedding": "104 rows",
        "tokenizer": "100 tokens, no chat template",
        "ends with": "<eos>; padded with <pad>",
    }


def test_a_scalar_head(made):
    facts = made("qwen2", head="value", dtype="bfloat16")
    assert facts["architecture"] == (
        "Qwen2ForSequenceClassification (scalar head: a reward or value model), supported"
    )
    biases = 2 * (16 + 8 + 8)
    count = LAYERS + biases + 104 * 16 + 16 + 16
    assert facts["parameters"] == f"{count:,}, stored as bfloat16"


def test_experts(made):
    facts = made("mixtral", num_local_experts=4, num_experts_per_tok=2)
    assert facts["layers"].endswith(" of 4, 2 of 4 experts")
    experts = 2 * (3 * 3 * 16 * 24 + 16 * 4)  # three more in each layer, and the router
    assert facts["parameters"].startswith(f"{LAYERS + experts + 2 * 104 * 16 + 16:,},")


def test_a_window_and_a_tied_embedding(made):
    gemma = {"head_dim": 4, "query_pre_attn_scalar": 4, "sliding_window": 16}
    facts = made("gemma2", tie_word_embeddings=True, max_position_embeddings=4096, **gemma)
    assert facts["positions"] == "4,096, in some layers 16 back"
    assert facts["embedding"] == "104 rows, the output head too"


def test_what_ends_and_pads(made, tmp_path):
    tokenizer = tokenizer_of(
        *("<|endoftext|>", "<|im_end|>", "<|fim_pad|>"),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    tokenizer.chat_template = "{{ messages }}"
    made(tokenizer=tokenizer)
    generation = tmp_path / "model" / "generation_config.json"
    edit_json(generation, eos_token_id=[1, 0])
    facts = examine(pretrained(tmp_path / "model"))
    assert facts["tokenizer"] == "14 tokens, a chat template"
    assert facts["ends with"] == "<|im_end|>, <|endoftext|>; padded with <|fim_pad|>"
    edit_json(generation, eos_token_id=[1, 103])  # a row of the embedding without a token
    with pytest.raises(UserError, match="103"):
        examine(pretrained(tmp_path / "model"))


def told(capsys, monkeypatch, name, code=0) -> str:
    """What the command prints, on a wide screen."""
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    assert doctor.main([str(name)]) == code
    captured = capsys.readouterr()
    if code == 0:
        assert captured.err == ""
        return captured.out
    assert captured.out == ""
    assert captured.err.startswith("rljax: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_command_prints_the_facts_and_the_memory(folder, capsys, monkeypatch):
    out = told(capsys, monkeypatch, folder)
    for name, value in examine(pretrained(folder)).items():
        assert re.search(rf"{name} +│ {re.escape(value)} ", out), name
    assert "memory by role, GiB" in out
    assert "rljax launch CONFIG --dry-run" in out


@pytest.mark.parametrize("name", ["[bold]", "[unused]", "[/INST]", "[pad]"])
def test_names_are_printed_as_they_are(tmp_path, capsys, monkeypatch, name):
    """And are not taken for the markup of the terminal."""
    tokenizer = tokenizer_of(name, "[PAD]", eos_token=name, pad_token="[PAD]")
    write_folder(tmp_path / name, tokenizer=tokenizer)
    out = told(capsys, monkeypatch, tmp_path / name)
    assert f"{name}; padded with [PAD]" in out
    assert f"{tmp_path.name}/{name}" in "".join(out.split())  # the title may be broken in two


def test_memory_by_hand(tmp_path):
    """2³⁰ parameters, but for norms and an MLP as narrow as can be."""
    sizes = {
        "vocab_size": 2**20 - 2**11,
        "hidden_size": 2**10,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 2**8,
        "intermediate_size": 1,
        "tie_word_embeddings": True,
    }
    found = Pretrained(shape_of(**sizes), tmp_path, "lm")
    assert parameter_count(found) == 2**30 + (2 * 3 + 5) * 2**10
    table = memory_table(found)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    assert [*rows] == [
        ("policy or value, trained in full", "12.00", "-"),
        ("gradients, for a moment", "4.00", "-"),
        ("base under LoRA adapters", "4.00", "2.00"),
        ("reference or reward, frozen", "4.00", "2.00"),
    ]
    assert " 2.0 KiB a token" in table.caption  # 2 layers, key and value of 256 numbers, 2 bytes


def without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def test_a_folder_without_a_tokenizer_is_said(tmp_path, capsys, monkeypatch):
    write_folder(tmp_path / "model")
    without_tokenizer(tmp_path / "model")
    out = told(capsys, monkeypatch, tmp_path / "model")
    assert "none here; the config must name one" in out
    assert "ends with" not in out


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lacking(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def more_tokens(folder):
    tokenizer_of(*"xyz", characters=map(chr, range(0x4E00, 0x4E00 + 102))).save_pretrained(folder)


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")


def two_labels(folder):
    edit_json(folder / "config.json", architectures=["LlamaForSequenceClassification"])


def no_eos(folder):
    tokenizer_of("<unk>", unk_token="<unk>").save_pretrained(folder)
    edit_json(folder / "generation_config.json", eos_token_id=None)


def other_family(folder):
    edit_json(folder / "config.json", model_type="gpt2")


def no_config(folder):
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, r"model/model\.safetensors is damaged or missing: "),
        (lacking, r"model lacks model\.norm\.weight"),
        (pickled, r"holds no model\.safetensors .*; pytorch_model\.bin is a pickle"),
        (more_tokens, "model: the tokenizer has 105 tokens, more than the embedding's 104"),
        (broken_tokenizer, "model.* tokenizer .*be read"),
        (two_labels, "a scalar head is needed, it has 2 labels"),
        (no_eos, "no EOS token"),
        (other_family, 'the architecture "gpt2" is not supported; .*valid: gemma2'),
        (no_config, r"holds no readable config\.json"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, monkeypatch, damage, said):
    write_folder(tmp_path / "model")
    damage(tmp_path / "model")
    assert re.search(said, told(capsys, monkeypatch, tmp_path / "model", code=2))


def test_what_is_nowhere_is_refused(tmp_path, capsys, monkeypatch):
    said = told(capsys, monkeypatch, tmp_path / "absent", code=2)
    assert "absent" in said
    assert "is no folder here, and no hub id" in said


def test_tensors_of_several_dtypes_are_all_named(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype("bfloat16")
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    facts = examine(pretrained(tmp_path))
    assert facts["parameters"].endswith(", stored as bfloat16, float32")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("token", [-1, 102, 103])
def test_an_eos_that_is_no_tokens_id_is_refused(tmp_path, token):
    write_folder(tmp_path / "model")
    tree = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    tree["model"]["vocab"]["~"] = 102  # 100 and 101 are nobody's
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(tree))
    edit_json(tmp_path / "model" / "generation_config.json", eos_token_id=token)
    if token == 102:
        assert examine(pretrained(tmp_path / "model"))["tokenizer"].startswith("103 tokens")
        edit_json(tmp_path / "model" / "generation_config.json", eos_token_id=101)
        token = 101
    with pytest.raises(UserError, match=f"generation config ends with {token}, no token's id"):
        examine(pretrained(tmp_path / "model"))
