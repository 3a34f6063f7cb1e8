"""The KL penalty: what each token pays for its distance from the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import make_rewards, make_rollout, pad_columns

from rljax.errors import UserError
from rljax.shaping import adaptive_kl, chain, kl_in_loss, kl_penalty
from rljax.types import Controller

# Two responses in columns 2.. of 8: KL (k1) of 0.2, 0.4 and of 0.6; elsewhere garbage.
KL = [[9.0, 9.0, 0.2, 0.4, jnp.nan, 9.0, 9.0, 9.0], [9.0, 9.0, 0.6, 9.0, 9.0, 9.0, 9.0, 9.0]]
ROLLOUT = make_rollout([2, 1], logprobs=KL, ref_logprobs=[[0.0] * 8] * 2)
REWARDS = make_rewards(ROLLOUT, [1.0, 0.0])


def shape(transform, rollout=ROLLOUT, state=None):
    rewards = make_rewards(rollout, [1.0] + [0.0] * (rollout.tokens.shape[0] - 1))
    return transform.apply(rewards, transform.init() if state is None else state, rollout)


def test_by_hand():
    shaped, _, metrics = shape(kl_penalty(0.5))
    expected = np.zeros((2, 8))
    expected[0, 2:4], expected[1, 2] = [-0.1, -0.2], -0.3
    np.testing.assert_allclose(shaped.token, expected, atol=1e-7)
    # the mean over responses of each one's mean: (0.3 + 0.6) / 2, and not (0.2 + 0.4 + 0.6) / 3
    np.testing.assert_allclose(metrics["reference_kl"], 0.45, rtol=1e-6)
    assert shaped.response.tolist() == [1.0, 0.0]
    assert shaped.raw.tolist() == [1.0, 0.0]


def test_it_needs_the_reference():
    assert kl_penalty(0.5).needs_reference


def test_what_the_reference_likes_more_earns():
    liked = ROLLOUT.replace(ref_logprobs=ROLLOUT.ref_logprobs + 1.0)
    shaped, _, _ = shape(kl_penalty(0.5), liked)
    np.testing.assert_allclose(shaped.token[0, 2:4], [0.4, 0.3], rtol=1e-6)


def test_tunix_identical_models_have_no_kl():
    same = ROLLOUT.replace(ref_logprobs=ROLLOUT.logprobs)
    shaped, _, metrics = shape(kl_penalty(0.5), same)
    assert not shaped.token.any()
    assert float(metrics["reference_kl"]) == 0.0


def test_the_coefficient_is_used_before_it_is_updated():
    control = adaptive_kl(0.5, target=0.1, horizon=4.0)
    transform = kl_penalty(control)
    shaped, state, _ = shape(transform)
    np.testing.assert_allclose(shaped.token[1, 2], -0.3, rtol=1e-6)  # 0.5·0.6
    # a KL of 0.45 is far above target: 0.5·(1 + 0.2·2/4) from the next batch on
    np.testing.assert_allclose(control.value(state), 0.55, rtol=1e-6)
    shaped, _, _ = shape(transform, state=state)
    np.testing.assert_allclose(shaped.token[1, 2], -0.33, rtol=1e-6)


def test_the_controller_is_told_the_kl_that_is_logged():
    told = Controller(lambda: jnp.float32(0), lambda _: jnp.float32(1), lambda _, kl, rows: kl)
    _, state, metrics = shape(kl_penalty(told))
    assert float(state) == float(metrics["reference_kl"])


def test_padding_columns_and_an_empty_response_change_nothing():
    wide = make_rollout(
        [2, 1, 0],
        prompt=3,
        budget=7,
        logprobs=jnp.pad(pad_columns(jnp.array(KL), 1, 1, 9.0), [(0, 1), (0, 0)]),
        ref_logprobs=jnp.zeros((3, 10)),
    )
    shaped, _, metrics = shape(kl_penalty(0.5), wide)
    narrow, _, narrow_metrics = shape(kl_penalty(0.5))
    np.testing.assert_array_equal(shaped.token[:2, 1:-1], narrow.token)
    assert not shaped.token[2].any()
    np.testing.assert_allclose(metrics["reference_kl"], narrow_metrics["reference_kl"], rtol=1e-6)


def test_a_batch_without_responses_pays_nothing():
    empty = ROLLOUT.replace(action_mask=jnp.zeros((2, 8), bool))
    shaped, state, metrics = shape(kl_penalty(adaptive_kl(0.5)), empty)
    assert not shaped.token.any()
    assert float(metrics["reference_kl"]) == 0.0
    assert np.isfinite(state).all()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_log_ratios_of_100_stay_finite(estimator, sign):
    far = ROLLOUT.replace(logprobs=jnp.full((2, 8), 100.0 * sign))
    shaped, _, metrics = shape(kl_penalty(0.5, estimator=estimator), far)
    assert np.isfinite(shaped.token).all()
    assert np.isfinite(metrics["reference_kl"])


def test_compiled_equals_eager():
    transform = kl_penalty(adaptive_kl(0.5), estimator="k3")
    eager = transform.apply(REWARDS, transform.init(), ROLLOUT)
    compiled = jax.jit(transform.apply)(REWARDS, transform.init(), ROLLOUT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), compiled, eager)


def test_an_unknown_estimator_is_refused_at_once():
    with pytest.raises(UserError, match='unknown KL estimator "k5"'):
        kl_penalty(0.5, estimator="k5")


BOTH = [kl_penalty, kl_in_loss]


@pytest.mark.parametrize("make", BOTH)
def test_a_response_that_does_not_count_is_not_measured(make):
    rewards = REWARDS.replace(counted=jnp.array([True, False]))
    _, _, metrics = make(0.5, estimator="k1").apply(rewards, (), ROLLOUT)
    np.testing.assert_allclose(metrics["reference_kl"], 0.3, rtol=1e-6)
    none = REWARDS.replace(counted=jnp.zeros(2, bool))
    _, _, metrics = make(0.5, estimator="k1").apply(none, (), ROLLOUT)
    assert float(metrics["reference_kl"]) == 0.0


def test_in_the_loss_it_leaves_the_rewards_and_hands_on_its_price():
    assert REWARDS.kl_coef is None
    shaped, state, metrics = shape(kl_in_loss(0.25))
    assert shaped.kl_coef.tolist() == [0.25, 0.25]
    assert state == ()
    jax.tree.map(np.testing.assert_array_equal, shaped.replace(kl_coef=None), REWARDS)
    # k3 is e^(−d) − 1 + d; the mean over responses of each one's mean
    k3 = {d: np.exp(-d) - 1 + d for d in (0.2, 0.4, 0.6)}
    expected = ((k3[0.2] + k3[0.4]) / 2 + k3[0.6]) / 2
    np.testing.assert_allclose(metrics["reference_kl"], expected, rtol=1e-4)
    assert kl_in_loss(0.25).needs_reference


def test_in_the_loss_the_estimate_is_the_one_that_is_named():
    _, _, metrics = shape(kl_in_loss(0.25, estimator="k2"))
    expected = ((0.02 + 0.08) / 2 + 0.18) / 2
    np.testing.assert_allclose(metrics["reference_kl"], expected, rtol=1e-5)
    with pytest.raises(UserError, match='unknown KL estimator "k5"'):
        kl_in_loss(0.5, estimator="k5")


def test_in_the_loss_too_the_coefficient_is_used_before_it_is_updated():
    transform = kl_in_loss(adaptive_kl(0.5, target=0.01, horizon=4.0))
    shaped, state, _ = shape(transform)
    assert shaped.kl_coef.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(state.value, 0.55, rtol=1e-6)  # 0.5·(1 + 0.2·2/4)
    shaped, _, _ = shape(transform, state=state)
    np.testing.assert_allclose(shaped.kl_coef, [0.55, 0.55], rtol=1e-6)


def test_in_the_loss_compiled_equals_eager():
    transform = kl_in_loss(adaptive_kl(0.5))
    eager = transform.apply(REWARDS, transform.init(), ROLLOUT)
    compiled = jax.jit(transform.apply)(REWARDS, transform.init(), ROLLOUT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), compiled, eager)


def test_the_price_survives_the_stages_behind_it():
    both = chain(kl_loss=kl_in_loss(0.25), kl=kl_penalty(0.5))
    shaped, _, metrics = both.apply(REWARDS, both.init(), ROLLOUT)
    assert shaped.kl_coef.tolist() == [0.25, 0.25]
    np.testing.assert_allclose(shaped.token[1, 2], -0.3, rtol=1e-6)
    assert {"reference_kl", "kl/reference_kl"} <= metrics.keys()
