"""The composition of an estimate and a loss: each part by hand, with fakes for the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import make_rewards, make_rollout

from rljax.compose import policy_gradient
from rljax.errors import UserError
from rljax.losses import clipped_value_loss, reinforce, token_weights
from rljax.shaping import adaptive_kl, chain, informative_groups
from rljax.types import Experience, Outputs

# Two rows, three response tokens in all.
MASK = jnp.array([[False, True, True], [False, True, False]])
LOGPROBS = jnp.array([[9.0, -1.0, -2.0], [9.0, -3.0, 9.0]])
ENTROPY = jnp.array([[9.0, 0.5, 1.0], [9.0, 1.5, 9.0]])
VALUES = jnp.array([[5.0, 1.0, 0.0], [5.0, 0.5, 5.0]])
OUTPUTS = Outputs(LOGPROBS, ENTROPY, VALUES)
# A policy loss of 2, 4 | 6, with a stat of 1, 0 | 1
TOKEN_LOSS = jnp.array([[7.0, 2.0, 4.0], [7.0, 6.0, 7.0]])
STAT = jnp.array([[7.0, 1.0, 0.0], [7.0, 1.0, 7.0]])


def estimate(rewards, rollout):
    raise AssertionError("the loss estimates nothing")


def policy_loss(logprobs, batch):
    return TOKEN_LOSS + 0.0 * logprobs, {"odd": STAT}


def compose(**keywords):
    return policy_gradient(estimate, policy_loss, **keywords)


def make_batch(algorithm, **fields):
    return Experience(
        tokens=jnp.zeros(MASK.shape, jnp.int32),
        mask=MASK,
        action_mask=MASK,
        logprobs=LOGPROBS,
        values=jnp.zeros(MASK.shape),
        returns=jnp.ones(MASK.shape),
        advantages=jnp.ones(MASK.shape),
        loss_weights=algorithm.weigh(MASK),
        mean_weights=token_weights(MASK),
        **fields,
    )


def loss(keywords, **fields):
    algorithm = compose(**keywords)
    return algorithm.loss(OUTPUTS, make_batch(algorithm, **fields))


def test_the_policy_loss_alone():
    total, metrics = loss({})
    assert float(total) == pytest.approx(4.0)
    expected = {"policy/loss": 4.0, "policy/entropy": 1.0, "policy/odd": 2 / 3}
    assert metrics == {name: pytest.approx(value) for name, value in expected.items()}


def test_entropy_is_a_bonus():
    total, metrics = loss({"entropy_coef": 0.25})
    assert float(total) == pytest.approx(4.0 - 0.25 * 1.0)
    assert float(metrics["policy/loss"]) == pytest.approx(4.0)


def test_the_value_loss_is_added():
    """½·(0, 1, ¼) where it is not clipped: 1, 0 | 0.5 against returns of 1."""

    def value_loss(values, old_values, returns):
        return 0.5 * jnp.square(values - returns), (values > 0.75).astype(jnp.float32)

    total, metrics = loss({"value_loss": value_loss})
    of_values = (0.5 + 0.125) / 3
    assert float(total) == pytest.approx(4.0 + of_values)
    assert float(metrics["value/loss"]) == pytest.approx(of_values)
    assert float(metrics["value/clipfrac"]) == pytest.approx(1 / 3)
    assert float(metrics["value/mean"]) == 0.0
    assert float(metrics["value/return_mean"]) == pytest.approx(1.0)


# log p − log q = log 2, −log 2 | log 4
REFERENCE = LOGPROBS - jnp.log(jnp.array([[9.0, 2.0, 0.5], [9.0, 4.0, 9.0]]))
LN2 = float(np.log(2.0))


@pytest.mark.parametrize(
    ("estimator", "tokens"),
    [
        ("k1", [LN2, -LN2, 2 * LN2]),
        ("k2", [LN2**2 / 2, LN2**2 / 2, 2 * LN2**2]),
        ("k3", [0.5 - 1 + LN2, 2 - 1 - LN2, 0.25 - 1 + 2 * LN2]),
        ("k1+", [LN2, -LN2, 2 * LN2]),
        ("k3+", [0.5 - 1 + LN2, 2 - 1 - LN2, 0.25 - 1 + 2 * LN2]),
    ],
)
def test_the_kl_is_priced_by_row(estimator, tokens):
    """0.3 for the two tokens of the first row, 2 for that of the second."""
    total, metrics = loss(
        {"kl_coef": 99.0, "kl_estimator": estimator},  # the batch brings the price
        ref_logprobs=REFERENCE,
        kl_coef=jnp.array([0.3, 2.0]),
    )
    first, second, third = tokens
    priced = 0.3 * (first + second) + 2.0 * third
    assert float(total) == pytest.approx(4.0 + priced / 3, abs=1e-5)
    assert float(metrics["policy/kl_loss"]) == pytest.approx(sum(tokens) / 3, abs=1e-5)
    assert float(metrics["policy/loss"]) == pytest.approx(4.0)


@pytest.mark.parametrize("estimator", ["k2", "k1+", "k3+"])
def test_the_gradient_of_the_kl_is_that_of_k2(estimator):
    algorithm = compose(kl_coef=1.0, kl_estimator=estimator)
    batch = make_batch(algorithm, ref_logprobs=REFERENCE, kl_coef=jnp.array([0.3, 0.3]))
    slope = jax.grad(lambda x: algorithm.loss(Outputs(x, ENTROPY), batch)[0])(LOGPROBS)
    expected = 0.1 * np.where(MASK, LOGPROBS - REFERENCE, 0.0)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-7)


def test_importance_weighs_the_policy_loss_and_nothing_else():
    importance = jnp.array([[9.0, 2.0, 0.5], [9.0, 0.0, 9.0]])
    _, plain = loss({"value_loss": clipped_value_loss}, ref_logprobs=REFERENCE, kl_coef=jnp.ones(2))
    total, metrics = loss(
        {"value_loss": clipped_value_loss, "entropy_coef": 0.25},
        ref_logprobs=REFERENCE,
        kl_coef=jnp.ones(2),
        importance=importance,
    )
    assert float(metrics["policy/loss"]) == pytest.approx((2 * 2 + 0.5 * 4) / 3)
    for name in plain.keys() - {"policy/loss"}:
        assert float(metrics[name]) == pytest.approx(float(plain[name])), name
    parts = metrics["policy/loss"] + plain["value/loss"] + plain["policy/kl_loss"]
    assert float(total) == pytest.approx(float(parts) - 0.25)


def test_a_correction_s_weight_scales_a_token_s_gradient():
    algorithm = policy_gradient(estimate, reinforce)
    weights = jnp.array([[9.0, 2.0, 0.5], [9.0, 0.0, 9.0]])
    batch = make_batch(algorithm, importance=weights)
    slope = jax.grad(lambda x: algorithm.loss(Outputs(x, ENTROPY), batch)[0])(LOGPROBS)
    np.testing.assert_allclose(slope, -weights * MASK / 3, rtol=1e-6)


def test_the_aggregation_weighs_all_parts_and_no_metric():
    keywords = {"entropy_coef": 0.25, "aggregation": "seq-mean-token-mean"}
    total, metrics = loss(keywords)
    assert float(total) == pytest.approx((3 + 6) / 2 - 0.25 * (0.75 + 1.5) / 2)
    assert float(metrics["policy/loss"]) == pytest.approx(4.5)
    assert float(metrics["policy/entropy"]) == pytest.approx(1.0)
    assert float(metrics["policy/odd"]) == pytest.approx(2 / 3)
    norm = compose(aggregation="seq-mean-token-sum-norm", norm_tokens=8.0)
    np.testing.assert_allclose(norm.weigh(MASK)[MASK], 1 / 16, rtol=1e-6)


def test_an_all_masked_batch_is_zero_with_finite_gradients():
    algorithm = policy_gradient(
        estimate, reinforce, value_loss=clipped_value_loss, entropy_coef=0.1, kl_coef=0.1
    )
    nothing = jnp.zeros_like(MASK)
    batch = make_batch(
        algorithm, ref_logprobs=REFERENCE, kl_coef=jnp.ones(2), importance=0.0 * LOGPROBS
    ).replace(
        action_mask=nothing,
        loss_weights=algorithm.weigh(nothing),
        mean_weights=token_weights(nothing),
    )
    (total, metrics), slopes = jax.value_and_grad(algorithm.loss, has_aux=True)(OUTPUTS, batch)
    assert float(total) == 0.0
    assert not any(metric for metric in metrics.values())  # nor NaN, which is true
    assert not any(slope.any() for slope in jax.tree.leaves(slopes))


def test_compiled_equals_eager():
    algorithm = compose(value_loss=clipped_value_loss, entropy_coef=0.1, kl_coef=0.1)
    batch = make_batch(algorithm, ref_logprobs=REFERENCE, kl_coef=jnp.ones(2))
    eager, compiled = algorithm.loss(OUTPUTS, batch), jax.jit(algorithm.loss)(OUTPUTS, batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), compiled, eager)


# What an algorithm asks of the step.

ROLLOUT = make_rollout([2, 1], ref_logprobs=[[-0.5] * 8] * 2)
REWARDS = make_rewards(ROLLOUT, [1.0, 0.0])


def shape(algorithm):
    stages = chain(**algorithm.shaping)
    return stages.apply(REWARDS, stages.init(), ROLLOUT)


def test_without_a_price_the_reference_is_left_out():
    algorithm = compose()
    assert not algorithm.shaping
    assert not chain(**algorithm.shaping).needs_reference
    assert shape(algorithm)[0].kl_coef is None


def test_a_price_reaches_the_rewards_and_leaves_them_as_they_are():
    algorithm = compose(kl_coef=0.3)
    assert chain(**algorithm.shaping).needs_reference
    rewards, _, metrics = shape(algorithm)
    np.testing.assert_allclose(rewards.kl_coef, [0.3, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(rewards.shaped, REWARDS.shaped)
    # log p − log q = 0.5 on every token, by k3
    np.testing.assert_allclose(metrics["reference_kl"], np.exp(-0.5) - 0.5, rtol=1e-5)


def test_a_controller_is_read_before_it_adapts():
    algorithm = compose(kl_coef=adaptive_kl(0.3, target=0.01, horizon=10))
    rewards, state, _ = shape(algorithm)
    np.testing.assert_allclose(rewards.kl_coef, [0.3, 0.3], rtol=1e-6)
    np.testing.assert_allclose(state["kl_loss"].value, 0.3 * (1 + 0.2 * 2 / 10), rtol=1e-6)


def test_the_price_stands_behind_the_algorithm_s_own_stages():
    own = {"informative": informative_groups()}
    assert list(compose(shaping=own, kl_coef=0.1).shaping) == ["informative", "kl_loss"]
    assert list(compose(shaping=own).shaping) == ["informative"]
    assert list(own) == ["informative"]  # and is not put into what was given


@pytest.mark.parametrize(
    ("keywords", "value", "groups", "greedy"),
    [
        ({}, False, False, False),
        ({"value_loss": clipped_value_loss}, True, False, False),
        ({"needs_groups": True}, False, True, False),
        ({"needs_greedy": True}, False, False, True),
    ],
)
def test_what_is_needed(keywords, value, groups, greedy):
    algorithm = compose(**keywords)
    needs = algorithm.needs_value, algorithm.needs_groups, algorithm.needs_greedy
    assert needs == (value, groups, greedy)


def test_what_is_handed_through():
    def mark(batch, key):
        return batch.action_mask

    filters = {"informative": informative_groups()}
    algorithm = compose(mark=mark, refill_rounds=4, filters=filters)
    assert algorithm.filters == filters
    assert not algorithm.shaping
    assert algorithm.estimate is estimate
    assert algorithm.mark is mark
    assert algorithm.refill_rounds == 4
    assert compose().refill_rounds == 1
    assert not compose().filters


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"entropy_coef": -0.1}, "entropy_coef must not be negative; got -0.1"),
        ({"refill_rounds": 0}, "refill_rounds must be at least 1; got 0"),
        ({"kl_coef": -0.1}, "must not be negative; got -0.1"),
        ({"kl_estimator": "k4"}, 'unknown KL estimator "k4"'),
        ({"aggregation": "token_mean"}, 'did you mean "token-mean"'),
        ({"norm_tokens": 8.0}, "norm_tokens is of seq-mean-token-sum-norm"),
        ({"aggregation": "seq-mean-token-sum-norm"}, "needs norm_tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(keywords, said):
    with pytest.raises(UserError, match=said):
        compose(**keywords)
