"""Rollout correction: weights and rejection by hand, and nothing where nothing differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rollout, pad_columns
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.losses import make_correction

# Two responses behind two prompt columns; d = log 1.5, log 4 | log 0.5.
ROLLOUT = make_rollout([2, 1], budget=2, logprobs=[[0.0, 0.0, -2.0, -3.0], [0.0, 0.0, -1.0, 0.0]])
NOW = ROLLOUT.logprobs + jnp.log(jnp.array([[9.0, 9.0, 1.5, 4.0], [9.0, 9.0, 0.5, 9.0]]))
BOTH = jnp.array([True, True])


def weights(keywords, now=NOW, rollout=ROLLOUT, counted=BOTH):
    importance, _, _ = make_correction(**keywords)(now, rollout, counted)
    return importance


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, [[0, 0, 1.5, 2], [0, 0, 0.5, 0]]),  # 4 is cut off at 2
        ({"cap": 8.0}, [[0, 0, 1.5, 4], [0, 0, 0.5, 0]]),
        ({"level": "sequence"}, [[0, 0, 2, 2], [0, 0, 0.5, 0]]),  # 1.5·4 = 6 is cut off at 2
        ({"level": "sequence", "cap": 8.0}, [[0, 0, 6, 6], [0, 0, 0.5, 0]]),
        ({"level": "none", "reject_above": 1.0}, [[0, 0, 1, 1], [0, 0, 1, 0]]),
        ({"cap": 0.75}, [[0, 0, 0.75, 0.75], [0, 0, 0.5, 0]]),
    ],
    ids=str,
)
def test_weights_by_hand(keywords, expected):
    np.testing.assert_allclose(weights(keywords), expected, rtol=1e-5)


# Distances from the sampler's policy, with d = −log of the ratios above:
#   k1: |−0.405465|, |−1.386294| | 0.693147;  k2: 0.082201, 0.960906 | 0.240227
#   k3: e^(−d) − 1 + d: 1.5 − 1 − 0.405465 = 0.094535, 4 − 1 − 1.386294 = 1.613706 | 0.193147
@pytest.mark.parametrize(
    ("estimator", "reject_by", "first", "second"),
    [
        ("k1", "mean", 0.895880, 0.693147),
        ("k1", "max", 1.386294, 0.693147),
        ("k2", "mean", 0.521554, 0.240227),
        ("k2", "max", 0.960906, 0.240227),
        ("k3", "mean", 0.854120, 0.193147),
        ("k3", "max", 1.613706, 0.193147),
    ],
)
def test_rejection_by_hand(estimator, reject_by, first, second):
    """A response is kept up to its distance, and left out a little below."""
    for threshold, kept in [
        (first + 1e-3, [True, True]),
        (first - 1e-3, [False, True]),
        (second + 1e-3, [False, True]),
        (second - 1e-3, [False, False]),
    ]:
        correct = make_correction(reject_above=threshold, reject_by=reject_by, estimator=estimator)
        _, got, metrics = correct(NOW, ROLLOUT, BOTH)
        assert got.tolist() == kept
        np.testing.assert_allclose(metrics["correction/rejected_ratio"], 1 - np.mean(kept))


def test_without_a_threshold_nothing_is_rejected():
    _, kept, metrics = make_correction()(NOW + 50.0, ROLLOUT, BOTH)
    assert kept.all()
    assert float(metrics["correction/rejected_ratio"]) == 0.0


def test_metrics_by_hand():
    _, _, metrics = make_correction(reject_above=0.5)(NOW, ROLLOUT, BOTH)
    expected = {
        "correction/kl": (0.094535 + 1.613706 + 0.193147) / 3,
        "correction/importance_mean": (1.5 + 2 + 0.5) / 3,
        "correction/capped_ratio": 1 / 3,
        "correction/rejected_ratio": 1 / 2,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_responses_that_do_not_count_enter_no_metric():
    _, _, metrics = make_correction(reject_above=0.5)(NOW, ROLLOUT, jnp.array([False, True]))
    np.testing.assert_allclose(metrics["correction/kl"], 0.193147, rtol=1e-5)
    np.testing.assert_allclose(metrics["correction/importance_mean"], 0.5, rtol=1e-5)
    assert float(metrics["correction/capped_ratio"]) == 0.0
    assert float(metrics["correction/rejected_ratio"]) == 0.0


SETTINGS = [
    {"level": level, "reject_above": 1e-6, "reject_by": by, "estimator": estimator}
    for level in ("token", "sequence", "none")
    for by, estimator in [("mean", "k1"), ("max", "k2"), ("max", "k3")]
]
every_setting = pytest.mark.parametrize(
    "keywords", SETTINGS, ids=lambda k: "-".join(map(str, k.values()))
)


@every_setting
@few
@given(st.lists(st.floats(-30, 0, width=32), min_size=3, max_size=3))
def test_identical_policies_weigh_exactly_1_and_reject_nothing(keywords, numbers):
    mask = ROLLOUT.action_mask
    drawn = jnp.full(mask.shape, 3.0).at[mask].set(jnp.array(numbers))
    now = jnp.where(mask, drawn, -5.0)  # other tokens do not matter
    importance, kept, metrics = make_correction(**keywords)(
        now, ROLLOUT.replace(logprobs=drawn), BOTH
    )
    np.testing.assert_array_equal(importance, mask.astype(np.float32))
    assert kept.all()
    assert float(metrics["correction/kl"]) == 0.0
    assert float(metrics["correction/capped_ratio"]) == 0.0


@every_setting
@pytest.mark.parametrize("shift", [100.0, -100.0])
def test_log_ratios_of_100_stay_finite(keywords, shift):
    correct = make_correction(**keywords)

    def total(now):
        importance, _, metrics = correct(now, ROLLOUT, BOTH)
        return importance.sum(), metrics

    (value, metrics), slope = jax.value_and_grad(total, has_aux=True)(NOW + shift)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    assert all(np.isfinite(metric) for metric in metrics.values())
    assert not correct(NOW + shift, ROLLOUT, BOTH)[1].any()


@every_setting
def test_an_all_masked_batch_is_zero_and_rejects_nothing(keywords):
    nothing = make_rollout([0, 0], budget=2)
    importance, kept, metrics = make_correction(**keywords)(NOW, nothing, BOTH)
    assert not importance.any()
    assert kept.all()
    assert not any(metric for metric in metrics.values())  # nor NaN, which is true
    _, _, metrics = make_correction(**keywords)(NOW, ROLLOUT, ~BOTH)
    assert not any(metric for metric in metrics.values())


@every_setting
def test_padding_columns_and_the_order_of_rows_change_nothing(keywords):
    correct = make_correction(**keywords)
    importance, kept, metrics = correct(NOW, ROLLOUT, BOTH)
    swapped = jax.tree.map(lambda x: x[::-1], ROLLOUT)
    wide = swapped.replace(
        action_mask=pad_columns(swapped.action_mask, 2, 1),
        logprobs=pad_columns(swapped.logprobs, 2, 1, -7.0),
    )
    padded, padded_kept, padded_metrics = correct(pad_columns(NOW[::-1], 2, 1, 3.0), wide, BOTH)
    np.testing.assert_allclose(padded, pad_columns(importance[::-1], 2, 1), rtol=1e-6)
    assert padded_kept.tolist() == kept[::-1].tolist()
    for name, metric in metrics.items():
        np.testing.assert_allclose(padded_metrics[name], metric, rtol=1e-6, err_msg=name)


@every_setting
def test_compiled_equals_eager(keywords):
    correct = make_correction(**keywords)
    eager, compiled = correct(NOW, ROLLOUT, BOTH), jax.jit(correct)(NOW, ROLLOUT, BOTH)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), compiled, eager)


def test_a_column_concerns_no_other():
    """The shift test: the weight of a token is of its own log-probs."""
    changed = weights({"cap": 99.0}, NOW.at[0, 2].add(0.1)) != weights({"cap": 99.0})
    assert changed.tolist() == [[False, False, True, False], [False] * 4]


def test_sequences_differ_by_the_product_of_their_tokens_held_at_20_nats():
    rollout = make_rollout([3], prompt=0, budget=3)
    now = jnp.array([[12.0, 12.0, -30.0]])  # the last is held at −20
    keywords = {"level": "sequence", "cap": 1e9}
    np.testing.assert_allclose(weights(keywords, now, rollout, BOTH[:1]), np.exp(4.0), rtol=1e-5)
    now = jnp.array([[12.0, 12.0, 12.0]])
    np.testing.assert_allclose(weights(keywords, now, rollout, BOTH[:1]), np.exp(20.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"cap": 0.0}, "needs cap > 0"),
        ({"cap": -1.0}, "needs cap > 0"),
        ({"reject_above": 0.0}, "reject_above > 0 or null"),
        ({"level": "none"}, "would correct nothing"),
        ({"estimator": "k4", "reject_above": 1.0}, 'unknown KL estimator "k4"'),
        ({"level": "none", "reject_above": 1.0, "cap": 0.5}, 'level "none" has none'),
        ({"estimator": "k1"}, "do nothing without reject_above"),
        ({"reject_by": "max"}, "do nothing without reject_above"),
        ({"estimator": "k1+", "reject_above": 1.0}, "unknown KL estimator"),
    ],
)
def test_what_makes_no_sense_is_refused(keywords, said):
    with pytest.raises(UserError, match=said):
        make_correction(**keywords)
