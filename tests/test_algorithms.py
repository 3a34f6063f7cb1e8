"""Compositions: their loss by hand, and every keyword with an effect or a refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import make_rewards, make_rollout

from rljax.algorithms import ppo, sft
from rljax.errors import UserError
from rljax.losses import token_weights
from rljax.types import Experience, Outputs

# Two rows, three response tokens in all: ratios 1.5, 0.5 | 4; advantages 1, −1 | −1.
MASK = jnp.array([[False, True, True], [False, True, False]])
OLD = jnp.full((2, 3), -1.0)
NEW = OLD + jnp.log(jnp.array([[7.0, 1.5, 0.5], [7.0, 4.0, 7.0]]))
ADVANTAGES = jnp.array([[0.0, 1.0, -1.0], [0.0, -1.0, 0.0]])
# values 1, 0 | 0.3 from 0; returns 1, 1 | 1
VALUES = jnp.array([[5.0, 1.0, 0.0], [5.0, 0.3, 5.0]])
ENTROPY = jnp.array([[9.0, 0.5, 1.0], [9.0, 1.5, 9.0]])
OUTPUTS = Outputs(NEW, ENTROPY, VALUES)


def batch(algorithm, mask=MASK):
    return Experience(
        tokens=jnp.zeros(mask.shape, jnp.int32),
        mask=mask,
        action_mask=mask,
        logprobs=OLD,
        values=jnp.zeros(mask.shape),
        advantages=ADVANTAGES,
        returns=jnp.ones(mask.shape) * mask,
        loss_weights=algorithm.weigh(mask),
        mean_weights=token_weights(mask),
    )


# policy: −1.2, 0.8 | 3, of which the first two are clipped and the third dually
# value: 0.125 (held at 0.5), 0.5 | 0.245, of which the first is clipped
POLICY, VALUE, ENTROPIES = (-1.2 + 0.8 + 3) / 3, (0.125 + 0.5 + 0.245) / 3, (0.5 + 1 + 1.5) / 3


def test_ppo_by_hand():
    algorithm = ppo(entropy_coef=0.1)
    loss, metrics = algorithm.loss(OUTPUTS, batch(algorithm))
    np.testing.assert_allclose(loss, POLICY + VALUE - 0.1 * ENTROPIES, rtol=1e-5)
    expected = {
        "policy/loss": POLICY,
        "policy/entropy": 1.0,
        "policy/ppo_kl": -np.log(1.5 * 0.5 * 4) / 3,
        "policy/clipfrac": 2 / 3,
        "policy/clipfrac_dual": 1 / 3,
        "value/loss": VALUE,
        "value/clipfrac": 1 / 3,
        "value/mean": 0.0,
        "value/return_mean": 1.0,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_ppo_rows_weigh_as_the_aggregation_says():
    algorithm = ppo(aggregation="seq-mean-token-mean", value_clip=None)
    _, metrics = algorithm.loss(OUTPUTS, batch(algorithm))
    np.testing.assert_allclose(metrics["policy/loss"], ((-1.2 + 0.8) / 2 + 3) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/clipfrac"], 2 / 3, rtol=1e-6)  # metrics stay means


LOSS_KNOBS = {
    "clip_low": 0.3,
    "clip_high": 0.4,
    "dual_clip": 2.0,
    "value_clip": 0.9,
    "entropy_coef": 0.01,
    "aggregation": "seq-mean-token-sum",
}


@pytest.mark.parametrize("name", LOSS_KNOBS)
def test_easydel_a_knob_that_does_nothing_in_the_loss(name):
    default, turned = ppo(), ppo(**{name: LOSS_KNOBS[name]})
    before, _ = default.loss(OUTPUTS, batch(default))
    after, _ = turned.loss(OUTPUTS, batch(turned))
    assert abs(float(before - after)) > 1e-3


@pytest.mark.parametrize("name", ["gamma", "lam"])
def test_easydel_a_knob_that_does_nothing_in_the_advantages(name):
    rollout = make_rollout([3, 5], values=[[0.3, 0.1] * 4, [0.9] * 8])
    rewards = make_rewards(rollout, [1.0, 0.0])
    before, _ = ppo().estimate(rewards, rollout)
    after, _ = ppo(**{name: 0.5}).estimate(rewards, rollout)
    assert float(jnp.abs(before - after).max()) > 1e-3


@pytest.mark.parametrize("make", [ppo, sft])
def test_norm_tokens_acts_with_its_aggregation(make):
    algorithm = make(aggregation="seq-mean-token-sum-norm", norm_tokens=8.0)
    np.testing.assert_allclose(algorithm.weigh(MASK)[MASK], 1 / 16, rtol=1e-6)


@pytest.mark.parametrize("make", [ppo, sft])
def test_norm_tokens_is_refused_where_it_does_nothing(make):
    with pytest.raises(UserError, match="norm_tokens is of seq-mean-token-sum-norm"):
        make(aggregation="token-mean", norm_tokens=8.0)


@pytest.mark.parametrize(
    "keywords",
    [
        {"gamma": 1.1},
        {"lam": -0.1},
        {"clip_low": 1.0},
        {"clip_low": -0.1},
        {"clip_high": -0.1},
        {"dual_clip": 1.0},
        {"aggregation": "token_mean"},
        {"value_clip": -0.5},
        {"value_clip": 0.0},
        {"aggregation": "seq-mean-token-sum-norm", "norm_tokens": 0.0},
    ],
)
def test_ppo_refuses_what_makes_no_sense(keywords):
    with pytest.raises(UserError):
        ppo(**keywords)


def test_sft_by_hand():
    algorithm = sft()
    outputs = Outputs(jnp.array([[-9.0, -1.0, -2.0], [-9.0, -3.0, -9.0]]), ENTROPY)
    loss, metrics = algorithm.loss(outputs, batch(algorithm))
    assert float(loss) == pytest.approx(2.0)
    assert float(metrics["policy/nll"]) == pytest.approx(2.0)
    slope = jax.grad(lambda x: algorithm.loss(Outputs(x, ENTROPY), batch(algorithm))[0])(NEW)
    np.testing.assert_allclose(slope, -token_weights(MASK), rtol=1e-6)
    assert algorithm.estimate is None
    assert not algorithm.needs_value


def differentiated(algorithm, outputs, experience):
    def loss(logprobs, values):
        return algorithm.loss(outputs._replace(logprobs=logprobs, values=values), experience)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(outputs.logprobs, outputs.values)


@pytest.mark.parametrize("make", [ppo, sft])
def test_an_all_masked_batch_is_zero_with_zero_gradients(make):
    algorithm = make()
    (loss, metrics), slopes = differentiated(
        algorithm, OUTPUTS, batch(algorithm, jnp.zeros_like(MASK))
    )
    assert float(loss) == 0.0
    assert not any(float(metric) for metric in metrics.values())
    assert not any(slope.any() for slope in slopes)


@pytest.mark.parametrize("shift", [100.0, -100.0])
def test_log_ratios_of_100_stay_finite(shift):
    algorithm = ppo()
    (loss, metrics), slopes = differentiated(
        algorithm, OUTPUTS._replace(logprobs=OLD + shift), batch(algorithm)
    )
    assert np.isfinite(loss)
    assert all(np.isfinite(metric) for metric in metrics.values())
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_gradients_raise_good_tokens_and_draw_values_to_the_return():
    algorithm = ppo()
    near = OUTPUTS._replace(logprobs=OLD, values=0.1 * VALUES)
    _, (by_logprob, by_value) = differentiated(algorithm, near, batch(algorithm))
    np.testing.assert_allclose(by_logprob, -ADVANTAGES * MASK / 3, atol=1e-6)
    assert (by_value[MASK] < 0).all()  # returns of 1 lie above
    assert not by_value[~MASK].any()


def test_padding_rows_and_columns_change_nothing():
    algorithm = ppo(entropy_coef=0.1)
    plain, plain_metrics = algorithm.loss(OUTPUTS, batch(algorithm))
    wide = lambda x, value=0.0: jnp.pad(x, [(0, 1), (1, 2)], constant_values=value)  # noqa: E731
    experience = jax.tree.map(wide, batch(algorithm)).replace(
        loss_weights=algorithm.weigh(wide(MASK)), mean_weights=token_weights(wide(MASK))
    )
    padded, metrics = algorithm.loss(Outputs(*(wide(x, 3.0) for x in OUTPUTS)), experience)
    np.testing.assert_allclose(padded, plain, rtol=1e-6)
    for name, value in plain_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("make", [ppo, sft])
def test_compiled_equals_eager(make):
    algorithm = make()
    eager = algorithm.loss(OUTPUTS, batch(algorithm))
    compiled = jax.jit(algorithm.loss)(OUTPUTS, batch(algorithm))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), compiled, eager
    )


def test_ppo_advantages_are_whitened_gae():
    rollout = make_rollout([3, 5], values=[[0.0] * 8] * 2)
    advantages, returns = ppo().estimate(make_rewards(rollout, [1.0, 0.0]), rollout)
    # over 3 ones and 5 zeros: mean 3/8, unbiased variance 15/56
    std = np.sqrt(15 / 56)
    np.testing.assert_allclose(advantages[0, 2:5], 0.625 / std, rtol=1e-5)
    np.testing.assert_allclose(advantages[1, 2:7], -0.375 / std, rtol=1e-5)
    np.testing.assert_allclose(returns[0, 2:5], 1.0, rtol=1e-6)
    assert ppo().needs_value
