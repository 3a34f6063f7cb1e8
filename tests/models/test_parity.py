"""Every family against transformers' own model: logits, greedy tokens, weights there and back."""

import copy
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from models.reference import compute, random_model, telling_model, torch
from models.zoo import ZOO, Imported, assert_close, batch, hf_config, import_folder, quick_jit
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as WITH_SCORE,
)

from rljax.host.export import export_adapters
from rljax.host.weights import INDEX, export_tensors
from rljax.models import Architecture, decoder
from rljax.models.lora import is_adapter, make_lora, merge_lora
from rljax.tasks import character_tokenizer
from rljax.trees import overlay, select

TOKENS, MASK = batch()
FIRST = {ZOO[name][0]: name for name in reversed(ZOO)}  # the first case of each family


class Case(NamedTuple):
    theirs: Any
    greedy: np.ndarray
    ours: Imported


@pytest.fixture(scope="module", params=ZOO)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    theirs, greedy = telling_model(request.param)
    theirs.save_pretrained(folder)
    return Case(theirs, greedy, import_folder(folder))


def test_logits(case):
    ours = quick_jit(case.ours.apply)(case.ours.params, TOKENS, MASK)
    assert_close(ours, compute(case.theirs, TOKENS, MASK), MASK)


def test_greedy_tokens(case):
    drawn = quick_jit(case.ours.continue_greedily)(case.ours.params, TOKENS, MASK)
    np.testing.assert_array_equal(drawn, case.greedy)


def assert_loads(folder, theirs, ours: Imported):
    """What is exported in several files loads in transformers, every bit as it was."""
    largest = 4 * max(np.prod(tensor.shape) for tensor in ours.tensors)
    export_tensors(folder, ours.tensors, ours.params, "float32", shard_bytes=max(9_000, largest))
    ours.hf.save_pretrained(folder)
    assert (folder / INDEX).exists()
    loaded = type(theirs).from_pretrained(folder).state_dict()
    expected = theirs.state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(loaded[name], tensor), name


def test_the_export_loads_bitwise(case, tmp_path):
    assert_loads(tmp_path, case.theirs, case.ours)


def test_adapters_merged_and_in_peft(case, tmp_path):
    """Ours beside the base, merged in transformers, and as PEFT reads them: one function."""
    peft = pytest.importorskip("peft")
    _, config, _, tensors, base = case.ours
    lora = make_lora(config, case.ours.hf.model_type, rank=2)
    model = decoder(dataclasses.replace(config, lora=lora))
    draw = np.random.default_rng(0)
    shapes = select(jax.eval_shape(model.init, jax.random.key(0)), is_adapter)
    adapters = jax.tree.map(lambda x: draw.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    params = overlay(base, adapters)
    adapted = quick_jit(lambda p: model.head(p, model.apply(p, TOKENS, MASK)))(params)

    merged, apart = tmp_path / "merged", tmp_path / "apart"
    merged.mkdir()
    export_tensors(merged, tensors, merge_lora(params, lora), "float32")
    case.ours.hf.save_pretrained(merged)
    theirs = type(case.theirs).from_pretrained(merged, attn_implementation="eager").eval()
    assert_close(adapted, compute(theirs, TOKENS, MASK), MASK)

    architecture, tokenizer = Architecture(config, case.ours.hf), character_tokenizer()
    export_adapters(apart, adapters, architecture, lora, tokenizer, base="base", card="")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(case.theirs), apart).eval()
    assert_close(adapted, compute(theirs, TOKENS, MASK), MASK)


@pytest.mark.parametrize("name", [name for family, name in FIRST.items() if family in WITH_SCORE])
def test_a_score_head(name, tmp_path):
    theirs = random_model(hf_config(name, num_labels=1), "AutoModelForSequenceClassification")
    folder, exported = tmp_path / "theirs", tmp_path / "ours"
    theirs.save_pretrained(folder)
    ours = import_folder(folder, head="value")
    tokens = np.where(MASK, TOKENS, 0)  # they look for the last token that is no padding
    scores = quick_jit(ours.apply)(ours.params, tokens, MASK)[:, -1]
    assert_close(scores, compute(theirs, tokens, MASK)[:, 0], ...)
    exported.mkdir()
    assert_loads(exported, theirs, ours)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama_biases", "phi3", "mixtral"])
def test_half_precision_is_read_as_it_stands(name, dtype, tmp_path):
    half = random_model(hf_config(name)).to(getattr(torch, dtype))
    half.save_pretrained(tmp_path / "half")
    half.float().save_pretrained(tmp_path / "float")
    read = [import_folder(tmp_path / kind).params for kind in ("half", "float")]
    jax.tree.map(np.testing.assert_array_equal, *read)
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {np.dtype("float32")}
