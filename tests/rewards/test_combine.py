"""Several rewards as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import make_rollout

from rljax.errors import UserError
from rljax.rewards import weighted_sum
from rljax.types import PYTHON_REWARD

ROLLOUT = make_rollout([1, 2, 3])
REWARDS = {
    "correct": lambda rollout: jnp.array([1.0, 0.0, 1.0]),
    "length": lambda rollout: rollout.lengths.astype(jnp.float32),
}


def test_trl_5352_the_logged_reward_ignored_its_weights():
    total, _, _, metrics, _ = weighted_sum(REWARDS, {"correct": 2.0, "length": -0.5})(ROLLOUT)
    assert total.tolist() == [1.5, -1.0, 0.5]
    assert float(metrics["rewards/length/mean"]) == 2.0
    np.testing.assert_allclose(metrics["rewards/length/std"], np.sqrt(2 / 3), rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/correct/mean"], 2 / 3, rtol=1e-6)


def test_a_missing_weight_is_one_and_a_zero_weight_still_measures():
    total, _, _, metrics, _ = weighted_sum(REWARDS, {"length": 0.0})(ROLLOUT)
    assert total.tolist() == [1.0, 0.0, 1.0]
    assert float(metrics["rewards/length/mean"]) == 2.0


def test_compiled_equals_eager():
    score = weighted_sum(REWARDS, {"length": 0.3})
    total, _, _, metrics, _ = score(ROLLOUT)
    compiled, *_, compiled_metrics, _ = jax.jit(score)(ROLLOUT)
    np.testing.assert_allclose(compiled, total, rtol=1e-6)
    assert metrics.keys() == compiled_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(compiled_metrics[name], value, rtol=1e-6)


@pytest.mark.parametrize(
    "whole",
    [
        lambda r: jnp.array([1, 0, 1]),
        lambda r: r.lengths != 2,
        lambda r: [1, 0, 1],
    ],
)
def test_tunix_whole_numbers_do_not_make_the_sum_whole(whole):
    total, *_ = weighted_sum({"whole": whole}, {"whole": 0.7})(ROLLOUT)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, [0.7, 0.0, 0.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("returned", "shape"), [(lambda r: r.logprobs, (3, 8)), (lambda r: r.lengths.sum(), ())]
)
def test_another_shape_is_refused(returned, shape):
    with pytest.raises(UserError) as error:
        weighted_sum({"mine": returned}, {})(ROLLOUT)
    assert f'"mine" must return one number per response, shape (3,); it returned shape {shape}' in (
        str(error.value)
    )


def test_verl_a_failed_reward_silently_scored_0():
    def broken(rollout):
        return rollout.extras["target"]

    with pytest.raises(UserError, match="reward \"mine\" raised KeyError: 'target'"):
        jax.jit(weighted_sum({"mine": broken}, {}))(ROLLOUT)


def test_a_reward_may_refuse_in_its_own_words():
    def refuses(rollout):
        raise UserError("no such column")

    with pytest.raises(UserError, match=r"^no such column$"):
        weighted_sum({"mine": refuses}, {})(ROLLOUT)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_values_that_are_not_finite_are_counted_by_reward(weight):
    """The run stops on the count, which must name the right reward, whatever its weight."""
    bad = {"bad": lambda rollout: jnp.array([jnp.nan, 1.0, -jnp.inf])}
    *_, metrics, _ = jax.jit(weighted_sum(bad | REWARDS, {"bad": weight}))(ROLLOUT)
    counts = {k: int(v) for k, v in metrics.items() if k.endswith("/nonfinite")}
    assert counts == {
        "rewards/bad/nonfinite": 2,
        "rewards/correct/nonfinite": 0,
        "rewards/length/nonfinite": 0,
    }


def test_correct_is_the_first_reward_above_one_half_whatever_its_weight():
    first = {"task": lambda rollout: jnp.array([1.0, 0.0, 0.5])}
    score = weighted_sum(first | {"style": lambda rollout: jnp.ones(3)}, {"task": 0.1})
    total, correct, *_ = score(ROLLOUT)
    np.testing.assert_allclose(total, [1.1, 1.0, 1.05], rtol=1e-6)
    assert correct.tolist() == [True, False, False]


PYTHON = jnp.array([0.5, jnp.nan, -jnp.inf])  # a value, a failure, and one that does not apply
ANSWERED = ROLLOUT.replace(extras=ROLLOUT.extras | {f"{PYTHON_REWARD}text": PYTHON})
IN_PYTHON = {"text": lambda rollout: rollout.extras[f"{PYTHON_REWARD}text"]}


def test_verl_a_failed_reward_function_silently_scores_0():
    total, correct, counted, metrics, _ = weighted_sum(IN_PYTHON, {"text": 2.0})(ANSWERED)
    assert counted.tolist() == [True, False, False]  # nor does any reward apply to the last
    assert total.tolist() == [1.0, 0.0, 0.0]
    assert not correct.any()
    assert float(metrics["rewards/text/failed"]) == 1
    assert float(metrics["rewards/text/nonfinite"]) == 0
    assert float(metrics["rewards/text/mean"]) == 0.5  # of those that have a value
    assert float(metrics["rewards/text/std"]) == 0.0


def test_a_failure_is_worth_what_the_config_says_and_still_counted_as_one():
    total, _, counted, metrics, _ = weighted_sum(IN_PYTHON, {}, {"text": -1.0})(ANSWERED)
    assert counted.tolist() == [True, True, False]
    assert total.tolist() == [0.5, -1.0, 0.0]
    assert float(metrics["rewards/text/failed"]) == 1
    assert float(metrics["rewards/text/mean"]) == 0.5


def test_a_yardstick_is_in_no_mean():
    greedy = ROLLOUT.replace(greedy=jnp.array([True, False, False]))
    score = weighted_sum({"mine": lambda rollout: jnp.array([9.0, 1.0, 3.0])}, {})
    *_, metrics, _ = score(greedy)
    assert float(metrics["rewards/mine/mean"]) == 2.0


def test_a_response_counts_if_any_reward_applies_to_it():
    both = {**IN_PYTHON, "whole": lambda rollout: jnp.ones(3)}
    total, _, counted, metrics, _ = weighted_sum(both, {})(ANSWERED)
    assert counted.tolist() == [True, False, True]
    assert total.tolist() == [1.5, 1.0, 1.0]
    assert float(metrics["rewards/text/not_applicable"]) == 1
