"""Low-rank adapters: which matrices have them, that they start as nothing, and merge exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import numbers, shape_of

from rljax.errors import UserError
from rljax.models import decoder
from rljax.models.config import LoRA
from rljax.models.lora import is_adapter, make_lora, merge_lora
from rljax.trees import overlay, select

EVERY = {"query", "key", "value", "out", "gate", "up", "down"}
TOKENS = jnp.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
MASK = jnp.array([[False, True, True, True, True], [True] * 5])


def lora_of(model_type="llama", /, **keywords):
    return make_lora(shape_of(model_type).decoder, model_type, **keywords)


@pytest.mark.parametrize(
    ("model_type", "targets", "expected"),
    [
        ("llama", "*", EVERY),
        ("llama", "q_proj", {"query"}),
        ("llama", "self_attn.q_proj", {"query"}),
        ("llama", "self_attn.*", {"query", "key", "value", "out"}),
        ("llama", "[qv]_proj", {"query", "value"}),
        ("llama", "?_proj", {"query", "key", "value", "out"}),
        ("llama", ["q_proj", "mlp.*"], {"query", "gate", "up", "down"}),
        ("phi3", "*", EVERY),
        ("phi3", "qkv_proj", {"query", "key", "value"}),
        ("phi3", "mlp.gate_up_proj", {"gate", "up"}),
        ("mixtral", "*", {"query", "key", "value", "out"}),  # the experts have none
    ],
)
def test_targets_are_patterns_of_the_names_of_the_family(model_type, targets, expected):
    assert lora_of(model_type, targets=targets).targets == expected


def test_by_default_every_matrix_is_adapted_and_alpha_is_twice_the_rank():
    assert lora_of() == LoRA(16, 32.0, frozenset(EVERY))
    assert lora_of(rank=4, alpha=3) == LoRA(4, 3.0, frozenset(EVERY))


@pytest.mark.parametrize(
    ("model_type", "keywords", "said"),
    [
        (
            "llama",
            {"targets": "query"},
            r'no matrix is called "query"; there are self_attn\.q_proj',
        ),
        ("llama", {"targets": ["q_proj", "Q_PROJ"]}, 'no matrix is called "Q_PROJ"'),
        ("phi3", {"targets": "q_proj"}, r'called "q_proj"; there are .*self_attn\.qkv_proj'),
        ("mixtral", {"targets": "mlp.*"}, r'no matrix is called "mlp\.\*"'),
        ("llama", {"targets": []}, "targets names no matrix"),
        ("llama", {"rank": 0}, "needs rank >= 1 and alpha > 0; got 0, 0"),
        ("llama", {"alpha": 0.0}, "got 16, 0"),
        ("llama", {"alpha": float("inf")}, "got 16, inf"),
        ("llama", {"alpha": float("nan")}, "got 16, nan"),
    ],
)
def test_what_names_nothing_is_refused_with_the_names_there_are(model_type, keywords, said):
    with pytest.raises(UserError, match=f"lora: .*{said}"):
        lora_of(model_type, **keywords)


def models(name, dtype="float32", **keywords):
    """A decoder with adapters, and its base."""
    architecture = shape_of(*CASES[name][:1], dtype=dtype, **CASES[name][1])
    lora = make_lora(architecture.decoder, architecture.hf.model_type, **keywords)
    with_lora = dataclasses.replace(architecture.decoder, lora=lora)
    return decoder(with_lora), decoder(architecture.decoder), lora


CASES = {
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "phi3": ("phi3", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "experts": ("mixtral", {"num_local_experts": 2}),
}


def logits(model, params):
    return jax.jit(lambda p: model.head(p, model.apply(p, TOKENS, MASK)))(params)


def test_where_the_adapters_are():
    model, base, _ = models("biases", rank=3, targets=["o_proj", "up_proj"])
    shapes = jax.tree.map(jnp.shape, numbers(model))
    assert select(shapes, is_adapter) == {
        "layers": {
            "attention": {"out": {"lora_a": (2, 4, 4, 3), "lora_b": (2, 3, 16)}},
            "mlp": {"up": {"lora_a": (2, 16, 3), "lora_b": (2, 3, 24)}},
        }
    }
    without = select(shapes, lambda path: not is_adapter(path))
    assert without == jax.tree.map(jnp.shape, numbers(base))
    assert jax.tree.map(len, shapes, is_leaf=lambda x: isinstance(x, tuple)) == (
        jax.tree.map(len, model.axes, is_leaf=lambda x: isinstance(x, tuple))
    )


@pytest.mark.parametrize("name", CASES)
def test_merged_says_what_adapted_says(name):
    model, base, lora = models(name, rank=2, alpha=3.0)
    params = numbers(model)
    merged = merge_lora(params, lora)
    assert jax.tree.structure(merged) == jax.tree.structure(numbers(base))
    adapted = logits(model, params)
    scale = jnp.abs(adapted).max()
    np.testing.assert_allclose(logits(base, merged), adapted, rtol=0, atol=1e-5 * scale)
    without = select(params, lambda path: not is_adapter(path))
    assert jnp.abs(logits(base, without) - adapted).max() > 0.1 * scale


def test_merged_by_hand():
    matrix = {
        "kernel": jnp.array([[[1.0, 2.0], [3.0, 4.0]]]),
        "bias": jnp.array([[5.0, 6.0]]),
        "lora_a": jnp.array([[[1.0], [2.0]]]),
        "lora_b": jnp.array([[[3.0, -1.0]]]),
    }
    tree = {"up": matrix, "norm": {"scale": jnp.ones(2)}}
    merged = merge_lora(tree, LoRA(rank=1, alpha=0.5, targets=frozenset({"up"})))
    # W + 0.5 · [1, 2]ᵀ [3, -1]
    assert merged["up"]["kernel"].tolist() == [[[2.5, 1.5], [6.0, 3.0]]]
    assert merged["up"].keys() == {"kernel", "bias"}
    assert merged["up"]["bias"].tolist() == [[5.0, 6.0]]
    assert merged["norm"]["scale"].tolist() == [1.0, 1.0]


def test_the_sum_is_not_rounded_to_the_dtype_of_the_base():
    """How it is stored is for the export to say."""
    matrix = {
        "kernel": jnp.array([[[256.0]]], jnp.bfloat16),  # whose next above is 258
        "lora_a": jnp.array([[[1.0]]]),
        "lora_b": jnp.array([[[0.5]]]),
    }
    merged = merge_lora(matrix, LoRA(rank=1, alpha=1.0, targets=frozenset()))
    assert merged["kernel"].item() == 256.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_begin_as_no_change(dtype):
    model, base, _ = models("biases", dtype, rank=2)
    drawn = select(model.init(jax.random.key(0)), is_adapter)
    ups = select(drawn, lambda path: path[-1] == "lora_b")
    downs = select(drawn, lambda path: path[-1] == "lora_a")
    assert not any(leaf.any() for leaf in jax.tree.leaves(ups))
    assert all(leaf.all() for leaf in jax.tree.leaves(downs))
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype("float32")}
    under = jax.tree.map(lambda x: x.astype(dtype), numbers(base))
    np.testing.assert_array_equal(logits(model, overlay(under, drawn)), logits(base, under))


def test_layers_draw_adapters_of_their_own():
    model, _, _ = models("tied", rank=2)
    drawn = select(model.init(jax.random.key(0)), lambda path: path[-1] == "lora_a")
    for leaf in jax.tree.leaves(drawn):
        assert (leaf[0] != leaf[1]).all()
        inputs = leaf[0].size // 2
        assert jnp.abs(leaf).max() <= 1 / np.sqrt(inputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_adapters_learn(dtype):
    """B first, as A's gradient is 0 where B is."""
    model, base, _ = models("biases", dtype, rank=2, targets="q_proj")
    under = jax.tree.map(lambda x: x.astype(dtype), numbers(base))

    @jax.jit
    @jax.grad
    def gradient(adapters):
        params = overlay(under, adapters)
        out = model.head(params, model.apply(params, TOKENS, MASK))
        return jnp.square(jax.nn.log_softmax(out)).mean()

    start = select(model.init(jax.random.key(0)), is_adapter)
    first = gradient(start)["layers"]["attention"]["query"]
    assert jax.tree.structure(gradient(start)) == jax.tree.structure(start)
    assert not first["lora_a"].any()
    assert jnp.abs(first["lora_b"]).min() > 0
    later = gradient(jax.tree.map(lambda x: x + 0.1, start))["layers"]["attention"]["query"]
    assert jnp.abs(later["lora_a"]).min() > 0
    assert {leaf.dtype for leaf in later.values()} == {jnp.dtype("float32")}
