"""Log-probs and entropies whose logits exist a part of the vocabulary at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.logprobs import hidden_logprobs, token_logprobs, vocab_parts
from rljax.losses.distribution import reverse_kl
from rljax.models import decoder, llama
from rljax.sharding import make_mesh
from rljax.train import make_forward
from rljax.types import Experience, Role

VOCAB, ROWS, COLUMNS = 50, 8, 8
SHAPE = {"layers": 1, "width": 16, "heads": 4, "kv_heads": 2, "mlp_width": 24, "rope_base": 100.0}
TOKENS = jax.random.randint(jax.random.key(1), (ROWS, COLUMNS), 0, VOCAB)
MASK = jnp.ones_like(TOKENS, bool)
WEIGHTS = jax.random.normal(jax.random.key(2), (2, ROWS, COLUMNS))


@functools.cache
def model_of(tied, at_once=VOCAB):
    config = llama(vocab_size=VOCAB, tied=tied, **SHAPE).decoder
    return decoder(dataclasses.replace(config, vocab_at_once=at_once))


def compiled(model):
    """Log-probs, entropies, and the gradient of a weighted sum of both."""

    def total(params):
        both = token_logprobs(model, params, TOKENS, MASK, temperature=0.7)
        return sum((w * x).sum() for w, x in zip(WEIGHTS, both, strict=True)), both

    return jax.jit(jax.grad(total, has_aux=True))


@functools.cache
def whole(tied):
    params = model_of(tied).init(jax.random.key(0))
    return params, compiled(model_of(tied))(params)


def assert_close(ours, expected, atol=3e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), ours, expected)


@pytest.mark.parametrize(
    ("tied", "at_once", "sizes"),
    [
        (True, 49, None),
        (False, 16, None),
        (False, 7, {"fsdp": 2, "tensor": 2}),  # parts of 4 of each device's 25
        (True, 16, {"tensor": 8}),  # the vocabulary divides over no device
        (True, 13, {"sequence": 2, "tensor": 2}),
    ],
)
def test_parts_of_the_vocabulary_give_what_the_whole_gives(tied, at_once, sizes):
    params, expected = whole(tied)
    program = compiled(model_of(tied, at_once))
    if sizes is None:
        assert_close(program(params), expected)
    else:
        with jax.set_mesh(make_mesh(**sizes)):
            assert_close(program(params), expected)


def test_logits_of_the_whole_vocabulary_never_exist():
    """Those of 13 ids at a time do, for 8 rows of 8 columns."""
    params, _ = whole(False)
    size = {ids: f"[{ROWS},{COLUMNS},{ids}]" for ids in (13, VOCAB)}
    text = compiled(model_of(False, 13)).lower(params).compile().as_text()
    assert size[13] in text
    for rows in (ROWS, 1):
        for columns in (COLUMNS, COLUMNS - 1):
            assert f"[{rows},{columns},{VOCAB}]" not in text
            assert f"[{rows * columns},{VOCAB}]" not in text
    assert "[8,7,50]" in compiled(model_of(False)).lower(params).compile().as_text()


def test_every_id_is_in_one_part():
    params, _ = whole(False)
    model = model_of(False, 16)
    changed, ids = model.head_parts(params)
    assert vocab_parts(model, params) == len(ids) == 4
    assert sorted(ids[ids >= 0].tolist()) == list(range(VOCAB))
    for part, columns in zip(changed["head"], ids, strict=True):
        np.testing.assert_array_equal(
            part[:, columns >= 0], params["head"][:, columns[columns >= 0]]
        )


def test_a_teacher_is_compared_with_in_parts_of_the_columns():
    params, _ = whole(False)
    taught = model_of(False).init(jax.random.key(3))
    batch = Experience(tokens=TOKENS, mask=MASK, action_mask=MASK)

    def outputs(at_once):
        roles = {name: Role(model_of(False, at_once), (name,)) for name in ("policy", "teacher")}
        forward = make_forward(roles, temperature=0.7, divergence=reverse_kl)

        def total(params):
            found = forward({"policy": params, "teacher": taught}, batch)
            return (WEIGHTS[0] * found.divergence).sum(), found

        return jax.jit(jax.grad(total, has_aux=True))(params)

    assert_close(outputs(16), outputs(VOCAB))


def test_padding_of_the_parts_does_no_harm_far_below_zero():
    """Logits near −120, of which the padding's 0 would be the largest by far."""
    params, _ = whole(False)
    low = params | {"head": params["head"] - 40.0}
    hidden = 0.2 * jnp.ones((ROWS, COLUMNS, 16))

    def gradient(at_once):
        model = model_of(False, at_once)

        def total(params):
            return sum(x.sum() for x in hidden_logprobs(model, params, hidden, TOKENS))

        return jax.jit(jax.grad(total))(low)["head"]

    assert float((hidden[0, 0] @ low["head"]).max()) < -100
    assert_close(gradient(16), gradient(VOCAB), atol=1e-3)
