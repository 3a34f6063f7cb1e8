"""Losses of labelled responses: the papers' formulas by hand, their slopes, far out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.losses import bco, kto

# Rewards above the baseline of 0.4, −0.8, 0.4, −0.8; desirable, desirable, not, not.
RATIOS = jnp.array([3.0, 0.0, 3.0, 0.0])
DESIRABLE = jnp.array([True, True, False, False])
S_4, S_8 = 0.5986877, 0.6899745  # σ(0.4), σ(0.8)
ZERO = jnp.full(4, 2.0)  # of kto, in nats: β·(3 − 2) = 0.4, β·(0 − 2) = −0.8
DELTA = jnp.full(4, 0.8)  # of bco, in rewards: β·3 − 0.8 = 0.4, −0.8

LOSSES = {
    "kto": partial(kto, beta=0.4),
    "apo_zero_unpaired": partial(kto, kind="apo_zero_unpaired", beta=0.4),
    "bco": partial(bco, beta=0.4),
}
BASELINES = {"kto": ZERO, "apo_zero_unpaired": None, "bco": DELTA}
every_loss = pytest.mark.parametrize("name", LOSSES)


def test_kto_by_hand():
    """λ_y − v with v = λ_D·σ(β(r − z₀)) or λ_U·σ(β(z₀ − r)): eqs. 7 and 8 of the paper."""
    weights = {"desirable_weight": 2.0, "undesirable_weight": 3.0}
    loss = kto(RATIOS, DESIRABLE, ZERO, beta=0.4, **weights)
    expected = [2 - 2 * S_4, 2 - 2 * (1 - S_8), 3 - 3 * (1 - S_4), 3 - 3 * S_8]
    np.testing.assert_allclose(loss, expected, rtol=2e-6)


def test_apo_zero_unpaired_by_hand():
    loss = LOSSES["apo_zero_unpaired"](jnp.array([1.0, 2.0, 1.0, 2.0]), DESIRABLE, None)
    np.testing.assert_allclose(loss, [1 - S_4, 1 - S_8, S_4, S_8], rtol=2e-6)


def test_bco_by_hand():
    loss = LOSSES["bco"](RATIOS, DESIRABLE, DELTA)
    # −log σ of 0.4, −0.8, −0.4, 0.8
    np.testing.assert_allclose(loss, [0.5130153, 1.1711007, 0.9130153, 0.3711007], rtol=2e-6)


@every_loss
def test_desirable_responses_gain_and_the_others_lose(name):
    slope = jax.grad(lambda x: LOSSES[name](x, DESIRABLE, BASELINES[name]).sum())(RATIOS)
    assert (slope[DESIRABLE] < 0).all()
    assert (slope[~DESIRABLE] > 0).all()


def test_slopes_at_the_baseline_by_hand():
    for loss, at, expected in ((kto, 2.0, 0.25), (bco, 0.8 / 0.4, 0.5)):
        baseline = ZERO if loss is kto else DELTA

        def total(x, loss=loss, baseline=baseline):
            return loss(x, DESIRABLE, baseline, beta=0.4).sum()

        slope = jax.grad(total)(jnp.full(4, at))
        expected = expected * 0.4 * np.array([-1, -1, 1, 1])
        np.testing.assert_allclose(slope, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_no_gradient_flows_through_the_baseline(name):
    slope = jax.grad(lambda z: LOSSES[name](RATIOS, DESIRABLE, z).sum())(BASELINES[name])
    assert not slope.any()


@every_loss
@pytest.mark.parametrize("far", [100.0, -100.0, 1e4, -1e4])
def test_log_ratios_of_100_and_more_stay_finite(name, far):
    def total(x):
        return LOSSES[name](x, DESIRABLE, BASELINES[name]).sum()

    loss, slope = jax.value_and_grad(total)(jnp.full(4, far))
    assert np.isfinite(loss)
    assert np.isfinite(slope).all()


@given(st.floats(-30, 30), st.floats(0, 30), st.booleans(), st.floats(0.1, 3), st.floats(0.1, 3))
@few
def test_kto_is_bounded_and_sees_the_difference_only(ratio, zero, desirable, for_one, for_other):
    weights = {"desirable_weight": for_one, "undesirable_weight": for_other}
    rows = [jnp.array([x]) for x in (ratio, desirable, zero)]
    loss = kto(*rows, **weights)
    assert 0 <= loss[0] <= (for_one if desirable else for_other) * (1 + 1e-6)
    without = kto(jnp.array([ratio - zero]), rows[1], None, kind="apo_zero_unpaired", **weights)
    np.testing.assert_allclose(loss, without, rtol=1e-4, atol=1e-5)
    # what is gained on one side is lost on the other
    other = kto(
        -rows[0], ~rows[1], -rows[2], desirable_weight=for_other, undesirable_weight=for_one
    )
    np.testing.assert_allclose(other, loss, rtol=1e-5)


@every_loss
def test_a_row_concerns_no_other(name):
    order = jnp.array([2, 0, 3, 1])
    baseline = BASELINES[name]
    moved = baseline if baseline is None else baseline[order]
    loss = LOSSES[name](RATIOS, DESIRABLE, baseline)
    np.testing.assert_array_equal(LOSSES[name](RATIOS[order], DESIRABLE[order], moved), loss[order])


@every_loss
def test_compiled_equals_eager(name):
    rows = RATIOS, DESIRABLE, BASELINES[name]
    np.testing.assert_allclose(jax.jit(LOSSES[name])(*rows), LOSSES[name](*rows), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "baseline", "said"),
    [
        ("kto", None, "needs a baseline"),
        ("apo_zero_unpaired", ZERO, "takes none"),
        ("apo_zero", ZERO, 'unknown kind "apo_zero"; did you mean "apo_zero_unpaired"'),
    ],
)
def test_a_baseline_that_would_be_ignored_is_refused(kind, baseline, said):
    with pytest.raises(UserError, match=said):
        kto(RATIOS, DESIRABLE, baseline, kind=kind)
