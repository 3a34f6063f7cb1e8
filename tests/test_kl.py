"""KL estimates: by hand, and against the KL they estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.kl import k1, k2, k3, kl_estimator

ESTIMATES = [k1, k2, k3, *(kl_estimator(name, in_loss=True) for name in ("k1+", "k3+"))]
STRAIGHT = {"k1+": k1, "k3+": k3}
P, Q = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.2, 0.6])
KL = float(jnp.sum(P * jnp.log(P / Q)))


def test_by_hand():
    logp, logq = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))  # d = log 2
    np.testing.assert_allclose(k1(logp, logq), 0.693147, rtol=1e-5)
    np.testing.assert_allclose(k2(logp, logq), 0.240227, rtol=1e-5)  # 0.693147² / 2
    np.testing.assert_allclose(k3(logp, logq), 0.193147, rtol=1e-5)  # 0.5 − 1 + 0.693147


@pytest.mark.parametrize("name", STRAIGHT)
@few
@given(st.floats(-30, 0, width=32), st.floats(-30, 0, width=32))
def test_straight_through_has_the_value_of_one_and_the_gradient_of_k2(name, logp, logq):
    at = jnp.float32(logp), jnp.float32(logq)
    value, slope = jax.value_and_grad(kl_estimator(name, in_loss=True))(*at)
    # its square, up to 450, is added and taken off again
    np.testing.assert_allclose(value, STRAIGHT[name](*at), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(slope, at[0] - at[1], rtol=1e-6, atol=1e-6)


def test_the_gradients_of_k1_and_k3_are_others():
    """With d = log 2: 1 and 1 − e^(−d) = 0.5, where k2 has 0.693147."""
    at = jnp.log(jnp.float32(0.5)), jnp.log(jnp.float32(0.25))
    slopes = [float(jax.grad(estimate)(*at)) for estimate in (k1, k2, k3)]
    np.testing.assert_allclose(slopes, [1.0, 0.693147, 0.5], rtol=1e-5)


@pytest.mark.parametrize("estimate", [k1, k3, *ESTIMATES[3:]])
def test_unbiased(estimate):
    mean = jnp.sum(P * estimate(jnp.log(P), jnp.log(Q)))
    np.testing.assert_allclose(mean, KL, rtol=1e-5)


@pytest.mark.parametrize("estimate", [k2, *ESTIMATES[3:]])
def test_has_the_gradient_of_the_kl(estimate):
    def kl(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(logp) * k1(logp, jnp.log(Q)))

    def sampled(logits):  # the tokens are drawn from P, which has no gradient
        return jnp.sum(P * estimate(jax.nn.log_softmax(logits), jnp.log(Q)))

    logits = jnp.log(P)
    np.testing.assert_allclose(jax.grad(sampled)(logits), jax.grad(kl)(logits), atol=1e-6)


@few
@given(st.lists(st.floats(-30, 0, width=32), min_size=8, max_size=8))
def test_k3_is_never_negative_and_identical_policies_have_none(numbers):
    logp, logq = jnp.array(numbers[:4]), jnp.array(numbers[4:])
    assert (k3(logp, logq) >= 0).all()
    for estimate in ESTIMATES:
        assert not estimate(logp, logp).any()


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_differences_of_100_stay_finite(estimate):
    logp, logq = jnp.array([0.0, -100.0]), jnp.array([-100.0, 0.0])
    value, slope = jax.value_and_grad(lambda x: estimate(x, logq).sum())(logp)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_one_token_adds_no_more_than_10_to_k3():
    assert k3(jnp.array([-100.0]), jnp.array([0.0])).tolist() == [10.0]
    # a d of 100 is held at 20: e^(−20) − 1 + 20 = 19, held at 10
    assert k3(jnp.array([0.0]), jnp.array([-100.0])).tolist() == [10.0]


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_gradient_draws_the_policy_to_the_reference(estimate):
    above = jax.grad(lambda x: estimate(x, jnp.float32(-2.0)))(jnp.float32(-1.0))
    assert above > 0  # minimising lowers a log-prob above the reference's


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_compiled_equals_eager(estimate):
    logp, logq = jnp.log(P), jnp.log(Q)
    np.testing.assert_allclose(jax.jit(estimate)(logp, logq), estimate(logp, logq), rtol=1e-5)


def test_by_name():
    assert kl_estimator("k3") is k3
    with pytest.raises(UserError, match=r'unknown KL estimator "k4".*valid: k1, k2, k3'):
        kl_estimator("k4")
    with pytest.raises(UserError, match=r"valid: k1, k1\+, k2, k3, k3\+"):
        kl_estimator("k4", in_loss=True)


@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_through_is_refused_in_the_reward_which_has_no_gradient(name):
    with pytest.raises(UserError, match="unknown KL estimator"):
        kl_estimator(name)
