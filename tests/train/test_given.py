"""What is learned from given rows, with a toy policy: references, baselines, held-out losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax.algorithms import bco, kto, sft
from rljax.train import init_state, make_appraise_given, make_forward, make_measure
from rljax.train.buckets import map_rows
from rljax.types import Experience, Model, Role

VOCABULARY = 5


def apply(params, tokens, mask):
    """A bigram model: the hidden state of a token is its row of logits."""
    return params[tokens]


BIGRAMS = Model(
    init=None, apply=apply, head=lambda params, hidden: hidden, init_cache=None, axes=()
)
ROLES = {"policy": Role(BIGRAMS, ("policy",)), "reference": Role(BIGRAMS, ("reference",))}
DRAW = np.random.default_rng(2)
POLICY, REFERENCE = (
    jnp.asarray(DRAW.normal(size=(VOCABULARY, VOCABULARY)), jnp.float32) for _ in range(2)
)
TOKENS = DRAW.integers(0, VOCABULARY, (8, 6)).astype(np.int32)
ENDS = np.array([6, 3, 5, 4, 6, 6, 2, 0])[:, None]  # the last row is a filler
MASK = np.arange(6) < np.maximum(ENDS, 1)
LEARNED = (np.arange(6) >= 1) & (np.arange(6) < ENDS)
LABELS = np.array([True, False, True, True, False, False, True, True])
OTHERS = Experience(tokens=TOKENS[::-1].copy(), mask=MASK, action_mask=LEARNED)
BATCH = Experience(
    tokens=TOKENS, mask=MASK, action_mask=LEARNED, desirable=LABELS, mismatched=OTHERS
)
BATCH = jax.tree.map(jnp.asarray, BATCH)


def state(shaping=()):
    return init_state(
        key=jax.random.key(0),
        params={"policy": POLICY},
        frozen={"reference": REFERENCE},
        optimizers={"policy": optax.sgd(1.0)},
        shaping=shaping,
    )


def ratios(tokens):
    """log π/π_ref of the learned tokens of every row, by hand."""
    found = []
    for row, learned in zip(tokens, LEARNED, strict=True):
        total = 0.0
        for t in range(1, 6):
            if learned[t]:
                for table, sign in ((POLICY, 1.0), (REFERENCE, -1.0)):
                    logits = np.asarray(table[row[t - 1]], np.float64)
                    total += sign * (logits[row[t]] - np.log(np.exp(logits).sum()))
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize("counts", [{}, {"parts": 4}, {"parts": 4, "buckets": 2}], ids=str)
def test_ktos_baseline_is_of_mismatched_rows_in_whatever_parts_they_are_read(counts):
    algorithm = kto()
    appraise = make_appraise_given(
        ROLES,
        needs_reference=True,
        baseline=algorithm.baseline,
        over_rows=functools.partial(map_rows, **counts),
    )
    batch, shaping, metrics, _ = jax.jit(appraise)(state(), BATCH)
    expected = max(ratios(TOKENS[::-1])[:7].mean(), 0.0)
    assert expected > 0
    np.testing.assert_allclose(metrics["kto/kl"], expected, rtol=1e-5)
    np.testing.assert_allclose(batch.baseline, np.full(8, expected), rtol=1e-5)
    assert batch.mismatched is None
    assert shaping == ()
    mine = jax.jit(lambda: make_forward({"policy": ROLES["policy"]})({"policy": POLICY}, BATCH))()
    found = jnp.where(LEARNED, mine.logprobs - batch.ref_logprobs, 0.0).sum(axis=-1)
    np.testing.assert_allclose(found, ratios(TOKENS), rtol=1e-4, atol=1e-5)


def test_bcos_baseline_is_of_the_rows_and_carried_on():
    algorithm = bco(beta=0.5)
    appraise = make_appraise_given(ROLES, needs_reference=True, baseline=algorithm.baseline)
    batch = BATCH.replace(mismatched=None)
    first, shaping, *_ = appraise(state(algorithm.baseline.init()), batch)
    mean = 0.5 * ratios(TOKENS)[:7].mean()
    np.testing.assert_allclose(first.baseline, np.full(8, mean), rtol=1e-5)
    assert float(shaping.count) == 7
    half = batch.replace(action_mask=jnp.asarray(LEARNED & (np.arange(8) < 2)[:, None]))
    second, shaping, *_ = appraise(state(shaping), half)
    mean = 0.5 * (ratios(TOKENS)[:7].sum() + ratios(TOKENS)[:2].sum()) / 9
    np.testing.assert_allclose(second.baseline, np.full(8, mean), rtol=1e-5)


def test_a_batch_that_brings_its_reference_needs_none():
    roles = {"policy": ROLES["policy"]}
    whole, *_ = make_appraise_given(ROLES, needs_reference=True)(state(), BATCH)
    assert whole.ref_logprobs is not None
    assert whole.mismatched.ref_logprobs is not None
    appraise = make_appraise_given(roles, baseline=kto().baseline)
    alone, *_ = appraise(state().replace(frozen={}), whole)
    expected, *_ = make_appraise_given(ROLES, needs_reference=True, baseline=kto().baseline)(
        state(), BATCH
    )
    np.testing.assert_allclose(alone.baseline, expected.baseline, rtol=1e-6)


@pytest.mark.parametrize("by_tokens", [True, False])
def test_a_held_out_loss_over_several_batches_is_that_of_one(by_tokens):
    algorithm = sft(aggregation="token-mean" if by_tokens else "seq-mean-token-mean")
    roles = {"policy": ROLES["policy"]}
    make = functools.partial(
        make_measure,
        make_appraise_given(roles),
        make_forward(roles),
        algorithm.loss,
        algorithm.weigh,
        by_tokens=by_tokens,
    )
    measure, batch = make(), BATCH.replace(mismatched=None)
    if by_tokens:
        batch = batch.replace(data_weights=LEARNED * jnp.linspace(0.5, 2.0, 8)[:, None])
    whole, count = measure(state(), batch)
    expected = batch.data_weights.sum() if by_tokens else 7
    np.testing.assert_allclose(count, expected, rtol=1e-6)
    assert ("loss" in whole) != by_tokens
    parts = [jax.tree.map(lambda x, a=a: x[a : a + 4], batch) for a in (0, 4)]
    found = [measure(state(), part) for part in parts]
    name = "policy/nll" if by_tokens else "loss"
    mean = sum(float(m[name] * n) for m, n in found) / sum(float(n) for _, n in found)
    np.testing.assert_allclose(whole[name], mean, rtol=1e-5)
    split, _ = make(microbatches=4)(state(), batch)
    np.testing.assert_allclose(split[name], whole[name], rtol=1e-5)
