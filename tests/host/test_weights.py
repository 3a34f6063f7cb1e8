"""Weights from and to a folder of safetensors, and what may be wrong with one."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rljax.errors import UserError
from rljax.host.weights import INDEX, SINGLE, Weights, export_tensors, import_params
from rljax.models import decoder, fresh, hf
from rljax.models.hf import tensors_of
from rljax.sharding import make_mesh, param_shardings

SIZES = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ARCHITECTURE = fresh(model_type="mixtral", num_local_experts=4, **SIZES)
MODEL = decoder(ARCHITECTURE.decoder)
PARAMS = MODEL.init(jax.random.key(0))
ABSTRACT = jax.eval_shape(MODEL.init, jax.random.key(0))
TENSORS = tensors_of(ABSTRACT, ARCHITECTURE.decoder, "mixtral")


def export(folder, dtype="float32", **settings):
    export_tensors(folder, TENSORS, PARAMS, dtype, **settings)


def read(folder, **sizes):
    mesh = make_mesh(**sizes) if sizes else make_mesh(jax.devices()[:1])
    shardings = param_shardings(MODEL.axes, ABSTRACT, mesh)
    return import_params(Weights(folder), TENSORS, ABSTRACT, shardings)


def assert_same(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_exported_is_read_as_the_float32_of_it(tmp_path, dtype):
    export(tmp_path, dtype)
    assert {str(array.dtype) for array in load_file(tmp_path / SINGLE).values()} == {dtype}
    params = read(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert_same(params, jax.tree.map(lambda x: x.astype(dtype).astype("float32"), PARAMS))


def test_shards_obey_the_limit_and_the_index_names_every_tensor(tmp_path):
    limit = 6_000  # bytes; the largest tensor has 1,536
    export(tmp_path, shard_bytes=limit)
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    files = {path.name: load_file(path) for path in tmp_path.glob("*.safetensors")}
    held = {name: file for file, arrays in files.items() for name in arrays}
    assert index["weight_map"] == held
    assert held.keys() == {tensor.name for tensor in TENSORS}
    sizes = [sum(array.nbytes for array in files[name].values()) for name in sorted(files)]
    assert max(sizes) <= limit < sum(sizes) == index["metadata"]["total_size"]
    assert all(sum(pair) > limit for pair in itertools.pairwise(sizes))  # no more than needed
    assert sorted(files)[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert_same(read(tmp_path), PARAMS)


def test_a_tensor_above_the_limit_has_a_file_of_its_own(tmp_path):
    export(tmp_path, shard_bytes=1)
    files = [load_file(path) for path in tmp_path.glob("*.safetensors")]
    assert [len(file) for file in files] == [1] * len(TENSORS)
    assert_same(read(tmp_path), PARAMS)


def test_without_a_need_for_shards_there_is_no_index(tmp_path):
    export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE]


@pytest.fixture
def reads(monkeypatch):
    """How many entries of which tensor were read, one by one."""
    seen = []
    original = Weights.read

    def counted(self, name, index):
        array = original(self, name, index)
        seen.append((name, array.size))
        return array

    monkeypatch.setattr(Weights, "read", counted)
    return seen


def test_every_entry_is_read_once_and_a_device_reads_what_it_holds(tmp_path, reads):
    export(tmp_path)
    assert_same(read(tmp_path, fsdp=2, tensor=4), PARAMS)
    sizes = {name: [size for n, size in reads if n == name] for name, _ in reads}
    for tensor in TENSORS:
        assert sum(sizes[tensor.name]) == math.prod(tensor.shape)
    attention = "model.layers.1.self_attn"
    assert sizes["model.embed_tokens.weight"] == [16 * 16 / 8] * 8
    assert sizes[f"{attention}.o_proj.weight"] == [16 * 16 / 8] * 8
    assert sizes[f"{attention}.k_proj.weight"] == [16 * 8 / 2] * 2  # four hold the same two heads


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_a_large_tensor_is_read_in_parts(tmp_path, reads, monkeypatch, sizes):
    monkeypatch.setattr(hf, "AT_ONCE", 40)  # entries; a row has up to 24
    export(tmp_path)
    assert_same(read(tmp_path, **sizes), PARAMS)
    assert max(size for _, size in reads) <= 40
    assert sum(size for _, size in reads) == sum(math.prod(tensor.shape) for tensor in TENSORS)


def change(folder, name, array):
    """The folder's one file with a tensor changed, or without it."""
    arrays = load_file(folder / SINGLE) | {name: array}
    save_file({name: a for name, a in arrays.items() if a is not None}, folder / SINGLE)


NORM, ONES = "model.norm.weight", np.ones(16, np.float32)


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        (NORM, None, "lacks model.norm.weight"),
        ("model.norm.bias", ONES, "has the unexpected model.norm.bias"),
        (NORM, ONES[:4], r"model.norm.weight has shape \(4,\); the config makes it \(16,\)"),
        (NORM, ONES.astype("int8"), "model.norm.weight is of type I8, not one of float32, bf"),
        (NORM, ONES.astype("float64"), "model.norm.weight is of type F64"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, name, array, said):
    export(tmp_path)
    change(tmp_path, name, array)
    with pytest.raises(UserError, match=rf"{tmp_path}.*{said}"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["score.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"])
def test_tensors_without_a_use_here_are_passed_over(tmp_path, name):
    export(tmp_path)
    change(tmp_path, name, ONES)
    assert_same(read(tmp_path), PARAMS)


def test_many_faults_are_counted(tmp_path):
    save_file({NORM: ONES}, tmp_path / SINGLE)
    with pytest.raises(UserError, match=rf"and {len(TENSORS) - 1 - 5} more$"):
        read(tmp_path)


def test_a_file_cut_short_is_named(tmp_path):
    export(tmp_path)
    whole = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(whole[:-8])
    with pytest.raises(UserError, match=rf"{SINGLE} is damaged or missing"):
        Weights(tmp_path)


def test_a_pickle_is_not_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}.")
    with pytest.raises(UserError, match=r"holds no .*; pytorch_model\.bin is a pickle"):
        Weights(tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=rf"holds no {SINGLE} and no {INDEX}$"):
        Weights(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / INDEX).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"{INDEX} is no index of weights"):
        Weights(tmp_path)


@pytest.mark.parametrize(
    "name", ["../{}", "{folder}/{}", "inner/../../{}", "..\\{}", "inner/{}", "weights.bin"]
)
def test_an_index_leads_to_no_other_folder_and_no_other_format(tmp_path, name):
    folder, file = tmp_path / "model", "secret.safetensors"
    (folder / "inner").mkdir(parents=True)
    for place in (tmp_path, folder / "inner"):
        save_file({"x": np.zeros(1, np.float32)}, place / file)
    named = name.format(file, folder=tmp_path)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": named}}))
    with pytest.raises(UserError, match="only safetensors beside it are read"):
        Weights(folder)


def test_a_shard_that_is_missing_is_named(tmp_path):
    export(tmp_path, shard_bytes=6_000)
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UserError, match=rf"{gone.name} is damaged or missing"):
        Weights(tmp_path)
