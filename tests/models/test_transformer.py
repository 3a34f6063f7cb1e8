"""The decoder against an independent NumPy one, and what must not change its results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.host.weights import gather
from rljax.logprobs import token_logprobs, token_values
from rljax.models import decoder, extend_cache, fresh, llama
from rljax.models.hf import tensors_of

SHAPE = {"vocab_size": 13, "layers": 3, "width": 16, "heads": 4, "kv_heads": 2, "mlp_width": 24}
CONFIG = llama(**SHAPE, rope_base=100.0, norm_eps=1e-5).decoder
MODEL = decoder(CONFIG)
PARAMS = MODEL.init(jax.random.key(1))
TOKENS = jnp.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])
MASK = jnp.ones_like(TOKENS, bool)

apply = jax.jit(MODEL.apply)


def logits(params, tokens, mask, model=MODEL):
    return model.head(params, model.apply(params, tokens, mask))


def numpy_llama(weights, tokens, heads, kv_heads, rope_base, eps, layers):
    """Logits [T, V] of one unpadded row, written from the published architecture in float64."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale

    def rotate(x):  # [T, heads, h]
        half = x.shape[-1] // 2
        angle = np.arange(len(x))[:, None] / rope_base ** (np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = w["model.embed_tokens.weight"][tokens]
    count = len(tokens)
    for i in range(layers):
        p = f"model.layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (
            (h @ w[f"{p}self_attn.{n}_proj.weight"].T).reshape(count, -1, x.shape[-1] // heads)
            for n in "qkv"
        )
        q, k = rotate(q), rotate(k)
        mixed = np.zeros_like(q)
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, group].T / np.sqrt(q.shape[-1])
            scores[np.triu_indices(count, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
        x = x + mixed.reshape(count, -1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate = h @ w[p + "mlp.gate_proj.weight"].T
        gated = gate / (1 + np.exp(-gate)) * (h @ w[p + "mlp.up_proj.weight"].T)
        x = x + gated @ w[p + "mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, w["model.norm.weight"]) @ head.T


@pytest.mark.parametrize("tied", [True, False])
def test_equals_an_independent_llama_under_hugging_face_names(tied):
    config = llama(**SHAPE, rope_base=100.0, norm_eps=1e-5, tied=tied).decoder
    model = decoder(config)
    params = jax.tree.map(lambda x: 2 * x, model.init(jax.random.key(1)))
    tensors = tensors_of(params, config, "llama")
    weights = {tensor.name: gather(tensor, params, "float32") for tensor in tensors}
    ours = logits(params, TOKENS, MASK, model)
    for row, tokens in zip(ours, np.asarray(TOKENS), strict=True):
        expected = numpy_llama(weights, tokens, 4, 2, 100.0, 1e-5, 3)
        np.testing.assert_allclose(row, expected, atol=1e-5 * np.abs(expected).max())


def test_maxtext_4016_attended_to_padding():
    padded = jnp.pad(TOKENS, [(0, 0), (3, 0)])
    mask = jnp.pad(MASK, [(0, 0), (3, 0)])
    np.testing.assert_allclose(
        logits(PARAMS, padded, mask)[:, 3:], logits(PARAMS, TOKENS, MASK), atol=1e-5
    )


def test_packed_sequences_are_as_if_alone():
    """No attention across, positions reset; also behind padding, and with padding behind."""
    packed = jnp.array([[0, 1, 2, 3, 7, 8, 0], [9, 10, 11, 12, 3, 4, 5]])
    segments = jnp.array([[0, 1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 2, 3, 3]])
    together = jax.jit(MODEL.apply)(PARAMS, packed, segments > 0, segments=segments)
    for row, first, length in ((0, 1, 3), (0, 4, 2), (1, 0, 4), (1, 4, 1), (1, 5, 2)):
        own = packed[row : row + 1, first : first + length]
        alone = MODEL.apply(PARAMS, own, jnp.ones_like(own, bool))
        np.testing.assert_allclose(
            together[row, first : first + length], alone[0], rtol=2e-5, atol=2e-6
        )


def test_a_token_does_not_see_those_after_it():
    changed = TOKENS.at[:, 3].set(0)
    before, after = logits(PARAMS, TOKENS, MASK), logits(PARAMS, changed, MASK)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (jnp.abs(before[:, 3:] - after[:, 3:]).max(axis=(0, 2)) > 1e-4).all()


def test_the_cache_gives_what_the_full_forward_gives():
    hidden, cache = apply(PARAMS, TOKENS[:, :2], MASK[:, :2], MODEL.init_cache(2, 2))
    cache = extend_cache(cache, 4, group_size=1)
    steps = [hidden]
    for column in range(2, 6):
        visible = jnp.broadcast_to(jnp.arange(6) <= column, (2, 6))
        hidden, cache = apply(PARAMS, TOKENS[:, column : column + 1], visible, cache, column)
        steps.append(hidden)
    full = apply(PARAMS, TOKENS, MASK)
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), full, atol=1e-5)


@pytest.mark.parametrize("stacked", [False, True])
def test_rows_go_on_at_columns_of_their_own(stacked, monkeypatch):
    """The first row is a token behind the second, and writes over a column that it had."""
    monkeypatch.setattr("rljax.models.transformer.MOST_UNROLLED", 1 if stacked else 8)
    model = decoder(CONFIG)
    before = TOKENS[:, :3].at[0, 2].set(0)
    _, cache = model.apply(PARAMS, before, MASK[:, :3], model.init_cache(2, 3))
    cache = extend_cache(cache, 3, group_size=1)
    column = jnp.array([2, 3])
    tokens = jnp.stack([TOKENS[0, 2:4], TOKENS[1, 3:5]])
    visible = jnp.arange(6) <= column[:, None] + 1
    hidden, _ = jax.jit(model.apply)(PARAMS, tokens, visible, cache, column)
    full = apply(PARAMS, TOKENS, MASK)
    np.testing.assert_allclose(hidden, [full[0, 2:4], full[1, 3:5]], atol=1e-5)


@pytest.mark.parametrize("remat", ["full", "dots", "offload"])
def test_remat_changes_no_gradient(remat):
    def gradient(model):
        return jax.grad(lambda p: token_logprobs(model, p, TOKENS, MASK)[0].sum())(PARAMS)

    other = decoder(llama(**SHAPE, rope_base=100.0, norm_eps=1e-5, remat=remat).decoder)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), gradient(MODEL), gradient(other)
    )


def test_bfloat16_computes_over_float32_parameters():
    model = decoder(llama(**SHAPE, rope_base=100.0, norm_eps=1e-5, dtype="bfloat16").decoder)
    params = model.init(jax.random.key(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert model.apply(params, TOKENS, MASK).dtype == jnp.bfloat16
    cache = model.init_cache(1, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype("bfloat16")}
    half = logits(params, TOKENS, MASK, model)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, logits(params, TOKENS, MASK), atol=0.05)
    assert (half != logits(params, TOKENS, MASK)).any()


def test_axes_name_every_axis_of_every_parameter():
    jax.tree.map(lambda leaf, axes: len(axes) == leaf.ndim or 1 / 0, PARAMS, MODEL.axes)
    query = MODEL.axes["layers"]["attention"]["query"]["kernel"]
    assert query == ("layers", "embed", "heads", "head_dim")


def test_logprobs_by_the_row_rule():
    """Column t is log softmax(logits[t − 1])[tokens[t]]; column 0 is 0."""
    logp, entropy = token_logprobs(MODEL, PARAMS, TOKENS, MASK)
    full = jax.nn.log_softmax(logits(PARAMS, TOKENS, MASK))
    assert logp[0, 0] == 0 == entropy[0, 0]
    np.testing.assert_allclose(logp[0, 4], full[0, 3, TOKENS[0, 4]], rtol=1e-5)
    np.testing.assert_allclose(entropy[0, 4], -(jnp.exp(full) * full).sum(-1)[0, 3], rtol=1e-5)


def test_temperature_divides_the_logits():
    logp, _ = token_logprobs(MODEL, PARAMS, TOKENS, MASK, temperature=0.5)
    full = jax.nn.log_softmax(logits(PARAMS, TOKENS, MASK) / 0.5)
    np.testing.assert_allclose(logp[1, 2], full[1, 1, TOKENS[1, 2]], rtol=1e-5)


def test_values_are_of_the_state_before_the_token():
    """The value at column t must not know token t; a new head gives 0 everywhere."""
    model = decoder(CONFIG, head="value")
    params = model.init(jax.random.key(2))
    assert not token_values(model, params, TOKENS, MASK).any()
    params["head"] = jnp.ones_like(params["head"])
    before = token_values(model, params, TOKENS, MASK)
    after = token_values(model, params, TOKENS.at[:, 3].set(0), MASK)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).all()


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"kv_heads": 3}, {"head_dim": 3}, {"layers": 0}], ids=str
)
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"llama: .*must be"):
        llama(**(SHAPE | wrong))


def test_a_frozen_bfloat16_model_computes_as_its_float32_copy():
    """In float32 arithmetic; Gemma's 1 + scale included."""
    architecture = fresh(
        model_type="gemma2",
        vocab_size=13,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = decoder(architecture.decoder)
    keys = jax.random.split(jax.random.key(0), 2)
    half = jax.tree.map(
        lambda x: (x + 0.3 * jax.random.normal(keys[1], x.shape)).astype(jnp.bfloat16),
        model.init(keys[0]),
    )
    whole = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    np.testing.assert_array_equal(
        logits(half, TOKENS, MASK, model), logits(whole, TOKENS, MASK, model)
    )
