"""Eight bits: by hand, within half a scale, and a model as its dequantised one."""

import dataclasses

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.zoo import quick_jit

from rljax.models import decoder, extend_cache, llama, map_cache
from rljax.models.attention import attention
from rljax.models.config import LoRA
from rljax.models.experts import Experts
from rljax.models.quantized import dequantize, quantize
from rljax.types import Quantized

SHAPE = {"vocab_size": 13, "width": 16, "heads": 4, "kv_heads": 2, "mlp_width": 24}
TOKENS = jnp.array([[0, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])
MASK = TOKENS > 0
LORA = LoRA(rank=2, alpha=8.0, targets=frozenset({"query", "down"}))


def of(layers=2, **changes):
    return decoder(dataclasses.replace(llama(**SHAPE, layers=layers).decoder, **changes))


MODELS = {
    "tied": of(),
    "own head": of(tied=False),
    "stacked": of(layers=9),
    "adapters": of(lora=LORA),
    "experts": of(experts=Experts(4, 2, normalize=True)),
    "biases and caps": of(qkv_bias=True, attention_softcap=3.0, logit_softcap=5.0, embed_scale=4.0),
}


def drawn(model, seed=1):
    """Parameters of which none is 0, adapters' second matrices included."""
    params = model.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [
        0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.map(jnp.add, params, jax.tree.unflatten(tree, noise))


def is_quantized(x):
    return isinstance(x, Quantized)


def exact(params):
    """What quantised parameters mean."""
    return jax.tree.map(dequantize, params, is_leaf=is_quantized)


def logits(model, params):
    return quick_jit(lambda p: model.head(p, model.apply(p, TOKENS, MASK)))(params)


def test_a_matrix_by_hand():
    """Columns whose largest entries are 12.7, 0 and 254: scales of 0.1, 0 and 2."""
    with jax.debug_nans(True):
        found = quantize(jnp.array([[12.7, 0.0, -254.0], [-3.04, 0.0, 3.0]]), (-2,))
    np.testing.assert_allclose(found.scale, [[0.1, 0.0, 2.0]], rtol=1e-6)
    np.testing.assert_array_equal(found.values, [[127, 0, -127], [-30, 0, 2]])  # 1.5: to even
    assert found.values.dtype == jnp.int8
    np.testing.assert_allclose(dequantize(found), [[12.7, 0, -254], [-3, 0, 4]], rtol=1e-6)


@hypothesis.given(
    hypothesis.extra.numpy.arrays(
        np.float32, (4, 3), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    )
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_no_entry_is_off_by_more_than_half_a_scale(x):
    for axes in ((-2,), (-1,), (-2, -1)):
        found = quantize(jnp.asarray(x), axes)
        off = np.abs(x - np.asarray(dequantize(found)))
        tiny = 1e-35  # whose scale float32 does not have
        assert (off <= np.asarray(found.scale) * 0.5001 + np.abs(x) * 1e-6 + tiny).all()
        assert (np.abs(found.values) <= 127).all()


@pytest.mark.parametrize("name", MODELS)
def test_quantised_weights_are_those_of_the_dequantised_model(name):
    """Logits in float32 within 1e-5 of what the numbers mean, and within a tenth of the exact."""
    model, params = MODELS[name], drawn(MODELS[name])
    low = model.quantized(weights="int8", kv_cache=None)
    cast = quick_jit(low.cast)(params)
    meant = logits(model, exact(cast))
    np.testing.assert_allclose(logits(low, cast), meant, atol=1e-5 * np.abs(meant).max())
    plain = np.asarray(logits(model, params))
    off = np.abs(plain - meant).max()
    assert 0 < off < 0.1 * np.abs(plain).max()
    for path, leaf in jax.tree.leaves_with_path(cast, is_leaf=is_quantized):
        stays = {"scale", "bias", "lora_a", "lora_b", "router"}
        stays |= {"embed"} if name == "own head" else set()
        assert is_quantized(leaf) != (path[-1].key in stays), path
    names = jax.tree.map(len, low.axes, is_leaf=lambda x: isinstance(x, tuple))
    assert names == jax.tree.map(jnp.ndim, cast)


@pytest.mark.parametrize("name", ["adapters", "experts", "stacked"])
def test_layers_apart_are_those_of_the_stack(name):
    model = MODELS[name].quantized(weights="int8", kv_cache="int8")
    params, cache = quick_jit(model.cast)(drawn(model)), model.init_cache(2, 6)
    hidden, _ = quick_jit(lambda p: model.apply(model.unstack(p), TOKENS, MASK, cache))(params)
    other, _ = quick_jit(lambda p: model.apply(p, TOKENS, MASK, cache))(params)
    np.testing.assert_allclose(hidden, other, atol=1e-5)


def test_attention_over_quantised_columns_is_that_over_what_they_mean():
    keys = iter(jax.random.split(jax.random.key(0), 3))
    q = jax.random.normal(next(keys), (2, 3, 4, 8))
    k = quantize(5 * jax.random.normal(next(keys), (2, 2, 8, 6)), (-2,))
    v = quantize(5 * jax.random.normal(next(keys), (2, 2, 6, 8)), (-1,))
    visible = jnp.arange(6) <= jnp.array([2, 3, 5])[:, None]
    visible = jnp.broadcast_to(visible, (2, 3, 6))
    for settings in ({"divisor": 2.0}, {"divisor": 2.0, "softcap": 3.0}):
        found = attention(q, k, v, visible, **settings)
        expected = attention(q, dequantize(k), dequantize(v), visible, **settings)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["tied", "stacked", "biases and caps"])
def test_decoding_a_token_at_a_time_is_a_pass_over_the_same_cache(name):
    """Integers of the caches are the same but where float32 rounds to the next."""
    model = MODELS[name].quantized(weights=None, kv_cache="int8")
    params, apply = drawn(model), quick_jit(model.apply)
    whole, filled = apply(params, TOKENS, MASK, model.init_cache(2, 6))
    hidden, cache = apply(params, TOKENS[:, :3], MASK[:, :3], model.init_cache(2, 3))
    cache, found = extend_cache(cache, 3, group_size=1), [hidden]
    for column in range(3, 6):
        visible = MASK & (jnp.arange(6) <= column)
        hidden, cache = apply(params, TOKENS[:, column : column + 1], visible, cache, column)
        found.append(hidden)
    real = np.asarray(MASK)
    found = np.concatenate(found, axis=1)
    np.testing.assert_allclose(found[real], np.asarray(whole)[real], atol=2e-2)

    def assert_alike(one, other, axis):
        assert one.dtype == other.dtype
        there = np.expand_dims(real, (1, -3 - axis))
        if one.dtype == jnp.int8:
            assert (there * np.abs(one.astype(np.int32) - other.astype(np.int32))).max() <= 1
        else:
            assert (there * np.abs(one - other)).max() < 1e-3

    map_cache(assert_alike, cache, filled)
    plain = np.asarray(quick_jit(MODELS[name].apply)(params, TOKENS, MASK))
    assert 1e-4 < np.abs(found - plain)[real].max() < 0.2


def test_a_cache_takes_a_byte_for_each_entry_and_four_for_a_scale():
    """Of 3 layers, 5 rows, 2 heads of 4 and 7 columns; keys and values."""
    model = of(layers=3).quantized(weights=None, kv_cache="int8")
    leaves = jax.tree.leaves(jax.eval_shape(lambda: model.init_cache(5, 7)))
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) == 2 * 3 * 5 * 2 * 7 * (4 + 4)
