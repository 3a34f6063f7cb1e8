"""Losses of pairs: each kind by hand, its slopes where nothing has been learnt yet, far out."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.losses import (
    bradley_terry,
    dpo,
    implied_reward,
    length_desensitised,
    orpo,
    simpo,
)
from rljax.losses.preference import COMPARING, DIVERGENCES, KINDS

RTOL = 2e-6  # float32 against numbers of seven digits

# Log-ratios 2 and 1 at β = 0.4: rewards 0.8 and 0.4, a margin of 0.4. In numbers:
LS_4, LS_N4, S_4 = -0.5130153, -0.9130153, 0.5986877  # log σ(0.4), log σ(−0.4), σ(0.4)
LS_8, LS_N8, S_8 = -0.3711007, -1.1711007, 0.6899745  # log σ(0.8), log σ(−0.8), σ(0.8)
SHARP = 0.9996646  # σ(0.4 / 0.05)

BY_HAND = {
    "sigmoid": ({}, -LS_4),
    "cdpo": ({"kind": "sigmoid", "label_smoothing": 0.1}, -0.9 * LS_4 - 0.1 * LS_N4),
    "sigmoid_norm": ({"label_smoothing": 0.2}, -0.8 * LS_4 - 0.2 * LS_N4),
    "robust": ({"label_smoothing": 0.1}, (-0.9 * LS_4 + 0.1 * LS_N4) / 0.8),
    "hinge": ({}, 0.6),
    "ipo": ({}, (1 - 1.25) ** 2),
    "exo_pair": (
        {"label_smoothing": 0.1},
        S_4 * (LS_4 - math.log(0.9)) + (1 - S_4) * (LS_N4 - math.log(0.1)),
    ),
    "nca_pair": ({}, -LS_8 - 0.5 * LS_N8 - 0.5 * LS_N4),
    "bco_pair": ({}, -LS_8 - LS_N4),
    "sppo_hard": ({}, (2 - 1.25) ** 2 + (1 + 1.25) ** 2),
    "apo_zero": ({}, 1 - S_8 + S_4),
    "apo_down": ({}, S_8 + 1 - S_4),
    "discopop": ({}, -(1 - SHARP) * LS_4 + SHARP * 0.6703200),
}
# by log-ratios of chosen and rejected, where both are 0, in units of β
SLOPES = {
    "sigmoid": (-0.5, 0.5),
    "cdpo": (-0.4, 0.4),
    "sigmoid_norm": (-0.3, 0.3),
    "robust": (-0.625, 0.625),
    "hinge": (-1.0, 1.0),
    "ipo": (-6.25, 6.25),
    "exo_pair": (-math.log(9) / 4, math.log(9) / 4),
    "nca_pair": (-0.25, 0.25),
    "bco_pair": (-0.5, 0.5),
    "sppo_hard": (-6.25, 6.25),
    "apo_zero": (-0.25, 0.25),
    "apo_down": (0.0, 0.25),
    "discopop": (0.7842641, -0.7842641),
}
every_kind = pytest.mark.parametrize("name", BY_HAND)


def of(name, **keywords):
    return partial(dpo, **{"kind": name, "beta": 0.4} | BY_HAND[name][0] | keywords)


def slopes(loss, *pairs):
    return jax.grad(lambda *x: loss(*x).sum(), (0, 1))(*pairs)


def test_every_kind_is_in_the_tables():
    assert {*BY_HAND} == {*SLOPES} == {*KINDS, "cdpo"}


@every_kind
def test_by_hand(name):
    loss = of(name)(jnp.array([2.0]), jnp.array([1.0]))
    np.testing.assert_allclose(loss, BY_HAND[name][1], rtol=RTOL, atol=2e-7)


@every_kind
def test_slopes_where_the_policy_is_its_reference(name):
    """The chosen response gains and the rejected one loses, but for what two papers say: APO-down
    only lowers the rejected one there, and DiscoPOP draws a pair together that is not yet apart."""
    by_chosen, by_rejected = slopes(of(name), jnp.zeros(1), jnp.zeros(1))
    expected = np.array(SLOPES[name]) * 0.4
    np.testing.assert_allclose([by_chosen[0], by_rejected[0]], expected, rtol=RTOL, atol=1e-7)


def test_a_hinge_has_nothing_to_say_past_its_margin():
    pair = jnp.array([2.0, 3.0]), jnp.array([-1.0, 0.0])  # margins of 1.2
    assert not of("hinge")(*pair).any()
    assert not np.any(slopes(of("hinge"), *pair))


def test_discopop_raises_the_chosen_response_of_a_pair_in_the_wrong_order():
    by_chosen, by_rejected = slopes(of("discopop"), jnp.array([-3.0]), jnp.array([3.0]))
    assert by_chosen[0] < 0 < by_rejected[0]
    np.testing.assert_allclose(by_rejected, -by_chosen, rtol=1e-6)


def test_discopop_s_tau_by_hand():
    loss = of("discopop", tau=0.4)(jnp.array([2.0]), jnp.array([1.0]))
    gate = 0.7310586  # σ(0.4 / 0.4)
    np.testing.assert_allclose(loss, -(1 - gate) * LS_4 + gate * 0.67032, rtol=RTOL)


@every_kind
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_log_ratios_of_100_and_more_stay_finite(name, beta):
    far = jnp.array([100.0, -100.0, 3000.0, -3000.0])
    loss, pair = of(name, beta=beta), (jnp.repeat(far, 4), jnp.tile(far, 4))
    assert np.isfinite(loss(*pair)).all()
    assert np.isfinite(slopes(loss, *pair)).all()


@pytest.mark.parametrize("name", COMPARING)
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5))
@few
def test_these_kinds_see_the_margin_only(name, chosen, rejected, shift):
    pair = jnp.array([chosen, chosen + shift]), jnp.array([rejected, rejected + shift])
    one, other = of(name)(*pair)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@every_kind
def test_a_pair_concerns_no_other(name):
    """So that permuting pairs permutes losses, and micro-batches add up."""
    chosen, rejected = 3.0 * jnp.sin(jnp.arange(5.0)), 2.0 * jnp.cos(jnp.arange(5.0))
    order = jnp.array([3, 0, 4, 2, 1])
    loss = of(name)(chosen, rejected)
    assert len(np.unique(loss)) == 5
    np.testing.assert_allclose(of(name)(chosen[order], rejected[order]), loss[order], rtol=1e-6)
    np.testing.assert_allclose(of(name)(chosen[:1], rejected[:1]), loss[:1], rtol=1e-6)


@every_kind
def test_compiled_equals_eager(name):
    pair = 3.0 * jnp.sin(jnp.arange(5.0)), 2.0 * jnp.cos(jnp.arange(5.0))
    np.testing.assert_allclose(jax.jit(of(name))(*pair), of(name)(*pair), rtol=1e-5)


def test_a_kind_refuses_what_it_does_not_know():
    """That every keyword of every kind acts or is refused: tests/test_knobs.py."""
    for keywords in ({"kind": "aot"}, {"kind": "hinge", "label_smoothing": 0.1}, {"beta": 0.0}):
        with pytest.raises(UserError):
            dpo(jnp.zeros(1), jnp.zeros(1), **keywords)


# Divergences: with d = 1 and β = 2; and their slopes at d = 0, in units of β.
REWARDS = {
    "reverse_kl": (2.0, 1.0),
    "forward_kl": (2 * 0.6321206, 1.0),
    "js": (2 * (0.6931472 - 0.3132617), 0.5),
    "alpha": (4 * 0.3934693, 1.0),
}
every_divergence = pytest.mark.parametrize("name", DIVERGENCES)


@every_divergence
def test_implied_reward_by_hand(name):
    reward, slope = REWARDS[name]
    of_divergence = partial(implied_reward, beta=2.0, divergence=name)
    np.testing.assert_allclose(of_divergence(jnp.array([1.0])), reward, rtol=RTOL)
    # what agrees with its reference has earned nothing, whatever the measure
    np.testing.assert_allclose(of_divergence(jnp.zeros(1)), 0.0, atol=1e-6)
    by_ratio = jax.grad(lambda d: of_divergence(d).sum())(jnp.zeros(1))
    np.testing.assert_allclose(by_ratio, 2.0 * slope, rtol=1e-6)


@pytest.mark.parametrize("kind", COMPARING)
@every_divergence
def test_under_every_divergence_log_ratios_of_100_stay_finite(name, kind):
    far = jnp.array([100.0, -100.0, 3000.0, -3000.0])
    loss, pair = of(kind, divergence=name), (jnp.repeat(far, 4), jnp.tile(far, 4))
    assert np.isfinite(loss(*pair)).all()
    assert np.isfinite(slopes(loss, *pair)).all()


def test_the_loss_is_of_the_divergence_s_rewards():
    chosen, rejected = jnp.array([1.0]), jnp.array([-1.0])
    loss = dpo(chosen, rejected, beta=2.0, divergence="js")
    # log 2 cancels; log σ(1) − log σ(−1) = 1
    np.testing.assert_allclose(loss, math.log1p(math.exp(-2.0)), rtol=1e-6)


@given(st.floats(-4, 4))
@few
def test_an_alpha_divergence_lies_between_the_reverse_and_the_forward_kl(ratio):
    d = jnp.array([ratio])
    reward = partial(implied_reward, d, beta=1.0)
    near = partial(reward, divergence="alpha")
    np.testing.assert_allclose(near(divergence_alpha=1e-3), reward(), rtol=1e-2, atol=1e-3)
    forward = reward(divergence="forward_kl")
    np.testing.assert_allclose(near(divergence_alpha=0.999), forward, rtol=1e-2, atol=1e-3)
    between = near(divergence_alpha=0.3)[0]
    assert forward[0] - 1e-5 <= between <= ratio + 1e-5


# LD-DPO


def test_length_desensitised_by_hand():
    """Left padding and a gap are no tokens; the shorter response has two; the last pair fills."""
    mask = jnp.array(
        [[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]] + 2 * [[0] * 5]
    )
    weights = length_desensitised(mask.astype(bool), 0.25)
    expected = np.array(
        [
            [0, 1, 1, 0, 0.25],
            [1, 1, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [1, 0.25, 0.25, 0.25, 0.25],
            [0] * 5,
            [0] * 5,
        ]
    )
    np.testing.assert_array_equal(weights, expected)
    np.testing.assert_array_equal(length_desensitised(mask.astype(bool), 1.0), mask)
    np.testing.assert_array_equal(
        jax.jit(length_desensitised, static_argnums=1)(mask.astype(bool), 0.25), expected
    )


@given(st.lists(st.integers(0, 6), min_size=4, max_size=4), st.floats(0, 1))
@few
def test_length_desensitised_sums_to_the_shorter_length_and_alpha_of_the_rest(lengths, alpha):
    mask = jnp.arange(6) < jnp.array(lengths)[:, None]
    sums = length_desensitised(mask, alpha).sum(axis=-1)
    shorter = np.repeat(np.array(lengths).reshape(2, 2).min(axis=1), 2)
    np.testing.assert_allclose(sums, shorter + alpha * (lengths - shorter), rtol=1e-5, atol=1e-6)


# Losses that know no reference, and a reward model's


def test_simpo_by_hand():
    pair = jnp.array([-0.5]), jnp.array([-1.0])
    # 2 · 0.5 − 0.6 = 0.4
    np.testing.assert_allclose(simpo(*pair, beta=2.0, gamma=0.6), -LS_4, rtol=RTOL)
    smoothed = simpo(*pair, beta=2.0, gamma=0.6, label_smoothing=0.1)
    np.testing.assert_allclose(smoothed, -0.9 * LS_4 - 0.1 * LS_N4, rtol=RTOL)


def test_orpo_by_hand():
    pair = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))
    # odds 1 and 1/3: −log σ(log 3) = log(4/3)
    np.testing.assert_allclose(orpo(*pair), 0.2876821, rtol=RTOL)
    # d log odds / d log p = 1 / (1 − p); σ(−log 3) = 1/4
    np.testing.assert_allclose(slopes(orpo, *pair), [[-0.5], [1 / 3]], rtol=1e-5)


@pytest.mark.parametrize("logp", [0.0, -1e-9, -1e-4, -100.0])
def test_orpo_of_responses_that_are_certain_or_impossible_stays_finite(logp):
    for pair in ((logp, -1.0), (-1.0, logp), (logp, logp), (logp, -100.0), (-100.0, logp)):
        pair = [jnp.array([x]) for x in pair]
        assert np.isfinite(orpo(*pair)).all()
        assert np.isfinite(slopes(orpo, *pair)).all()


def test_bradley_terry_by_hand():
    pair = jnp.array([1.3]), jnp.array([0.4])
    np.testing.assert_allclose(bradley_terry(*pair, jnp.array([0.5])), -LS_4, rtol=RTOL)
    centred = bradley_terry(*pair, 0.5, centring=0.1)
    np.testing.assert_allclose(centred, -LS_4 + 0.1 * 1.7**2, rtol=RTOL)


LOSSES = {"simpo": simpo, "orpo": orpo, "bradley_terry": partial(bradley_terry, centring=0.1)}


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_reference_the_chosen_gains_and_the_rejected_loses(name):
    pair = jnp.array([-0.7, -2.0]), jnp.array([-0.7, -1.9])
    by_chosen, by_rejected = slopes(LOSSES[name], *pair)
    if name == "bradley_terry":  # but for the level
        by_chosen, by_rejected = slopes(bradley_terry, *pair)
    assert (by_chosen < 0).all()
    assert (by_rejected > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_reference_compiled_equals_eager_far_out_too(name):
    pair = jnp.array([-0.3, -100.0, -1.0, -100.0]), jnp.array([-0.9, -1.0, -100.0, -100.0])
    loss = LOSSES[name](*pair)
    assert np.isfinite(loss).all()
    assert np.isfinite(slopes(LOSSES[name], *pair)).all()
    np.testing.assert_allclose(jax.jit(LOSSES[name])(*pair), loss, rtol=1e-5)


def test_centring_draws_the_scores_to_0():
    by_chosen, by_rejected = slopes(partial(bradley_terry, centring=0.1), jnp.ones(1), jnp.ones(1))
    np.testing.assert_allclose([by_chosen[0], by_rejected[0]], [-0.5 + 0.4, 0.5 + 0.4], rtol=1e-6)
