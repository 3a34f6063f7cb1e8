"""Folders and hub ids: what is found there, what is refused, and which tokens end and pad."""

import json

import pytest
from folders import edit_json, shape_of, tokenizer_of, write_folder
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects

from rljax.errors import UserError
from rljax.host import pretrained as module
from rljax.host.pretrained import (
    count_ids,
    eos_ids_of,
    find_folder,
    has_tokenizer,
    load_tokenizer,
    pretrained,
    read_json,
    same_tokens,
    settle_special_tokens,
)
from rljax.models import decoder_config
from rljax.tasks import character_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "llama"
    write_folder(folder)
    return folder


@pytest.fixture
def config_folder(tmp_path, folder):
    """A folder with that one's config and the keys that are given, and nothing else."""

    def make(**keys):
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        edit_json(tmp_path / "config.json", **keys)
        return tmp_path

    return make


@pytest.fixture
def hub(monkeypatch):
    """What is asked of the hub, which answers with ``hub["answer"]``."""
    asked = {}

    def snapshot_download(name, **patterns):
        asked.update(name=name, patterns=patterns)
        if isinstance(asked["answer"], Exception):
            raise asked["answer"]
        return str(asked["answer"])

    monkeypatch.setattr(module, "snapshot_download", snapshot_download)
    return asked


def test_a_folder_is_taken_as_it_is(tmp_path, hub, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_folder(str(tmp_path), "x") == tmp_path
    assert find_folder("~/org", "x") == tmp_path / "org"
    monkeypatch.chdir(tmp_path)
    assert find_folder("org/model", "x").samefile(tmp_path / "org" / "model")
    assert hub == {}


def test_a_hub_id_is_fetched_once_and_without_pickles_and_code(tmp_path, hub):
    hub["answer"] = tmp_path
    assert find_folder("org/model", "models.policy") == tmp_path
    assert hub["name"] == "org/model"
    wanted = [
        *("config.json", "generation_config.json", "model.safetensors.index.json"),
        *("model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"),
        *("tokenizer.model", "merges.txt"),
    ]
    unwanted = [
        *("pytorch_model.bin", "modeling_own.py", "model.pth", "weights.pkl", "model.gguf"),
        *("consolidated.safetensors", "original/model.safetensors"),  # the same again
    ]
    assert [*filter_repo_objects(wanted + unwanted, **hub["patterns"])] == wanted


@pytest.mark.parametrize(
    "name", ["a/b/c", "not an id/x", "../absent", "-x/y", "~nobody-is-called-so/x"]
)
def test_what_is_no_folder_and_no_hub_id_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find_folder(name, "models.policy")
    assert str(error.value) == f'models.policy: "{name}" is no folder here, and no hub id'


@pytest.mark.parametrize(
    "error",
    [
        OSError("404 Client Error\n\nRepository Not Found"),
        OfflineModeIsEnabled("404 Client Error"),
        RuntimeError(" 404 Client Error "),
    ],
)
def test_why_the_hub_failed_is_said_in_one_line(hub, error):
    hub["answer"] = error
    with pytest.raises(UserError) as refused:
        find_folder("org/absent", "models.reward")
    assert str(refused.value) == (
        'models.reward: "org/absent" is no folder here, and could not be fetched from the hub: '
        "404 Client Error"
    )


def test_a_folder_is_read_as_what_it_is(folder):
    found = pretrained(folder)
    assert (found.folder, found.head) == (folder, "lm")
    assert found.architecture.hf.model_type == "llama"
    expected = shape_of().hf
    assert found.architecture.decoder == decoder_config(expected, remat="full")


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [
        ("float32", None, "float32"),
        ("bfloat16", None, "bfloat16"),
        ("float16", None, "bfloat16"),
        (None, None, "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "bfloat16"),
    ],
)
def test_arithmetic_is_in_float32_where_the_folder_or_the_config_says_so(
    config_folder, stored, given, expected
):
    found = pretrained(config_folder(dtype=stored), dtype=given)
    assert found.architecture.decoder.dtype == expected


def test_remat_is_passed_on(folder):
    assert pretrained(folder, remat="dots").architecture.decoder.remat == "dots"


@pytest.mark.parametrize(
    ("keys", "head"),
    [
        ({}, "lm"),
        ({"architectures": None}, "lm"),
        ({"architectures": []}, "lm"),
        (
            {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "score"}},
            "value",
        ),
    ],
)
def test_the_head_is_what_the_architecture_says(config_folder, keys, head):
    assert pretrained(config_folder(**keys)).head == head


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"model_type": "llamma"},
            'the architecture "llamma" is not supported; did you mean "llama"',
        ),
        (
            {"model_type": "gpt2"},
            r'"gpt2" is not supported; \(valid: gemma2, gemma3_text, granite, .*, smollm3\)',
        ),
        ({"model_type": None}, 'the architecture "None" is not supported'),
        ({"model_type": ["llama"]}, "is not supported"),
        (
            {"architectures": ["LlamaForTokenClassification"]},
            "is a LlamaForTokenClassification; supported of its family are "
            "LlamaForCausalLM and LlamaForSequenceClassification",
        ),
        ({"architectures": ["LlamaModel"]}, "is a LlamaModel; supported"),
        ({"architectures": ["MistralForCausalLM"]}, "is a MistralForCausalLM; supported"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "a scalar head is needed, it has 2 labels",
        ),
        ({"hidden_act": "relu"}, 'llama: activation "relu" is none of silu, gelu'),
        ({"architectures": True}, "is a True; supported of its family are LlamaForCausalLM"),
        ({"architectures": [["x"]]}, r"is a \['x'\]; supported of its family are"),
        (
            {"rope_parameters": {"rope_theta": 10.0, "partial_rotary_factor": "x"}},
            "a value is of another type or size: ",
        ),
        ({"hidden_size": "many"}, r"config\.json is no llama: .*hidden_size"),
        (
            {"rope_parameters": {"rope_type": "spiral", "rope_theta": 10.0}},
            'rope_type "spiral" is not supported',
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_folder(config_folder, keys, said):
    folder = config_folder(**keys)
    with pytest.raises(UserError, match=f"^{folder}.*{said}") as error:
        pretrained(folder)
    assert "\n" not in str(error.value)


def test_a_family_without_a_classifier_names_only_what_there_is(tmp_path):
    write_folder(tmp_path / "granite", "granite")
    edit_json(tmp_path / "granite" / "config.json", architectures=["GraniteModel"])
    with pytest.raises(UserError, match=r"supported of its family are GraniteForCausalLM$"):
        pretrained(tmp_path / "granite")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"holds no readable config\.json"),
        (b"{", r"config\.json is not valid JSON: "),
        (b'{"model_type": "\xff"}', r"config\.json is not valid JSON: "),
        (b"[1]", r"config\.json: expected a JSON object"),
    ],
)
def test_a_config_that_is_missing_or_damaged_is_named(tmp_path, text, said):
    if text is not None:
        (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=f"^{tmp_path}.*{said}"):
        pretrained(tmp_path)


def test_read_json(tmp_path):
    (tmp_path / "a.json").write_text('{"é": [1]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"é": [1]}


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, (2,)),
        ({}, (2,)),
        ({"eos_token_id": None}, (2,)),
        ({"eos_token_id": 7}, (2, 7)),
        ({"eos_token_id": 2}, (2,)),
        ({"eos_token_id": [9, 2, 7, 9]}, (2, 9, 7)),
    ],
)
def test_the_tokenizers_eos_comes_first_and_none_twice(tmp_path, generation, expected):
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert eos_ids_of(character_tokenizer(), tmp_path) == expected
    assert eos_ids_of(character_tokenizer(), None) == (2,)


def test_a_tokenizer_may_leave_its_eos_to_the_generation_config(tmp_path):
    tokenizer = tokenizer_of("<unk>", unk_token="<unk>")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3]}')
    assert eos_ids_of(tokenizer, tmp_path) == (3,)
    for folder in (tmp_path / "absent", None):
        with pytest.raises(UserError, match="no EOS token, and no generation config names one"):
            eos_ids_of(tokenizer, folder)


@pytest.mark.parametrize("given", ["</s>", [2, "</s>"], {"id": 2}])
def test_eos_ids_that_are_no_numbers_are_refused(tmp_path, given):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
    with pytest.raises(UserError, match=r"generation_config\.json"):
        eos_ids_of(character_tokenizer(), tmp_path)


EOS = "</s>"


@pytest.mark.parametrize(
    ("special", "roles", "expected"),
    [
        # what is no EOS stays, whatever else there is
        (["<fill>", "<|pad|>"], {"pad_token": "<fill>"}, "<fill>"),
        # one made for padding, the shortest
        (["<unk>", "<|fim_pad|>", "<|pad|>"], {"pad_token": EOS}, "<|pad|>"),
        (["<unk>", "[PAD]", "<|reserved_0|>"], {}, "[PAD]"),
        # a reserved one, the first
        (["<|reserved_1|>", "<|reserved_0|>", "<s>"], {"bos_token": "<s>"}, "<|reserved_0|>"),
        (["<unk>", "<unused7>"], {"unk_token": "<unk>", "pad_token": EOS}, "<unused7>"),
        # words are no special tokens
        (["<unk>", "keypad", "reserved"], {"unk_token": "<unk>"}, "<unk>"),
        (["<s>", "<unk>"], {"unk_token": "<unk>", "bos_token": "<s>"}, "<unk>"),
        (["<s>"], {"bos_token": "<s>", "pad_token": EOS}, "<s>"),
        ([], {"bos_token": EOS, "unk_token": EOS, "pad_token": EOS}, None),
        ([], {}, None),
    ],
)
def test_tunix_pad_was_eos_and_eos_left_the_loss(special, roles, expected):
    tokenizer = tokenizer_of(EOS, *special, eos_token=EOS, **roles)
    eos_ids = (tokenizer.eos_token_id,)
    if expected is None:
        with pytest.raises(UserError, match="a pad token that is no EOS, and has nothing to take"):
            settle_special_tokens(tokenizer, eos_ids)
        return
    size = len(tokenizer)
    settle_special_tokens(tokenizer, eos_ids)
    assert tokenizer.pad_token == expected
    assert tokenizer.pad_token_id not in eos_ids
    assert len(tokenizer) == size


def test_a_pad_token_that_the_generation_config_ends_with_is_replaced():
    """As Qwen's chat models have it: ``<|endoftext|>`` pads, and ends too."""
    tokenizer = tokenizer_of(
        *("<|endoftext|>", "<|im_end|>", "<|vision_pad|>", "<|fim_pad|>"),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    settle_special_tokens(tokenizer, (1,))
    assert tokenizer.pad_token == "<|endoftext|>"
    settle_special_tokens(tokenizer, (1, 0))
    assert tokenizer.pad_token == "<|fim_pad|>"


def test_a_candidate_that_ends_a_response_is_passed_over():
    tokenizer = tokenizer_of(EOS, "<pad>", "<|pad|>", eos_token=EOS)
    settle_special_tokens(tokenizer, (0, 1))
    assert tokenizer.pad_token == "<|pad|>"


def test_an_eos_that_the_generation_config_alone_names_is_the_tokenizers_too():
    tokenizer = tokenizer_of("<pad>", EOS, "<|end|>", pad_token="<pad>")
    settle_special_tokens(tokenizer, (2, 1))
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|end|>", 2)
    settle_special_tokens(tokenizer, (1,))
    assert tokenizer.eos_token == "<|end|>"


def test_among_equals_the_choice_is_the_same_in_every_process():
    """The order of a set of strings is not."""
    names = [f"<|{letter}_pad|>" for letter in "hgfedcba"]
    tokenizer = tokenizer_of(EOS, *names, eos_token=EOS)
    settle_special_tokens(tokenizer, (0,))
    assert tokenizer.pad_token == "<|a_pad|>"


def test_a_tokenizer_is_read_to_pad_on_the_left(folder, tmp_path):
    right = character_tokenizer()
    right.padding_side, right.chat_template = "right", "{{ messages[0].content }}"
    right.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.padding_side == "left"
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert load_tokenizer(folder).chat_template is None


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path, config_folder):
    assert has_tokenizer(folder)
    assert not has_tokenizer(tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path} holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path} holds no tokenizer"):
        load_tokenizer(config_folder())


def test_a_damaged_tokenizer_is_refused(tmp_path):
    character_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=f"^{tmp_path}.* tokenizer .*be read") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_the_same_tokens_are_the_same_text_under_the_same_ids():
    one = tokenizer_of(EOS, "<unk>", characters="ab", eos_token=EOS)
    assert same_tokens(one, tokenizer_of(EOS, "<unk>", characters="ab", eos_token="<unk>"))
    assert not same_tokens(one, tokenizer_of(EOS, "<unk>", characters="ba", eos_token=EOS))
    assert not same_tokens(one, tokenizer_of(EOS, "<unk>", characters="abc", eos_token=EOS))


def test_a_config_of_more_layers_than_any_model_has_is_refused(config_folder):
    with pytest.raises(UserError, match=r"config.json: num_hidden_layers is 1,000,000,000, more"):
        pretrained(config_folder(num_hidden_layers=10**9))


def test_a_tokenizer_that_cannot_encode_is_refused_as_it_is_read(tmp_path, folder):
    for path in folder.glob("token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    load_tokenizer(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", model_max_length="long")
    with pytest.raises(UserError, match="the tokenizer cannot be read: '>' not supported"):
        load_tokenizer(tmp_path)


def test_an_id_beyond_the_number_of_tokens_needs_a_row_of_its_own(tmp_path, folder):
    assert count_ids(load_tokenizer(folder)) == len(load_tokenizer(folder)) == 100
    for path in folder.glob("token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    for number in (200, 2**31):
        tree["model"]["vocab"]["~"] = number
        (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
        if number == 200:
            assert count_ids(load_tokenizer(tmp_path)) == 201
    with pytest.raises(UserError, match=r"the tokenizer has an id of 2,147,483,648"):
        load_tokenizer(tmp_path)
