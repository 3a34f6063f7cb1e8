"""What a length costs, and the faults of the seed that concern it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout
from hypothesis import given
from hypothesis import strategies as st

from rljax.advantages import token_rewards
from rljax.errors import UserError
from rljax.lengths import band_distance
from rljax.shaping import drift, length_band, length_metrics


def penalties(transform, lengths, raw=None, state=None, budget=16):
    """What a transform takes from each response, and its new state."""
    rollout = make_rollout(lengths, budget=budget)
    rewards = make_rewards(rollout, [0.0] * len(lengths) if raw is None else raw)
    state = transform.init() if state is None else state
    shaped, state, _ = transform.apply(rewards, state, rollout)
    return (rewards.response - shaped.response).tolist(), state


def test_by_hand():
    # band of width 2: one token outside costs 0.4·(1/2)², two 0.4·(2/2)², and no more: the cap
    costs, _ = penalties(length_band(3, 5, weight=0.4), [0, 1, 2, 3, 5, 6, 7, 8, 16])
    np.testing.assert_allclose(
        costs, [0.4, 0.4, 0.1, 0.0, 0.0, 0.1, 0.4, 0.4, 0.4], rtol=1e-6, atol=1e-7
    )


def test_in_the_seeds_units_without_a_cap():
    costs, _ = penalties(length_band(3, 5, weight=0.3, scale_tokens=1.0, cap=None), [1, 4, 9])
    np.testing.assert_allclose(costs, [1.2, 0.0, 4.8], rtol=1e-6)


def test_a_band_of_one_length_has_a_scale_of_one_token():
    costs, _ = penalties(length_band(4, 4, weight=1.0, cap=None), [3, 4, 6])
    assert costs == [1.0, 0.0, 4.0]


def test_seed_fault_1_penalty_is_subtracted():
    rollout = make_rollout([4, 9])
    rewards = make_rewards(rollout, [1.0, 1.0])
    transform = length_band(2, 5, weight=0.3)
    shaped, _, metrics = transform.apply(rewards, transform.init(), rollout)
    assert shaped.response[1] < shaped.response[0] == 1.0
    assert metrics["length_penalty_mean"] > 0


def test_seed_fault_3_the_prompt_is_no_part_of_the_length():
    for prompt in (0, 9):
        rollout = make_rollout([4, 2], prompt=prompt)
        assert rollout.lengths.tolist() == [4, 2]
        transform = length_metrics(2, 4)
        _, _, metrics = transform.apply(make_rewards(rollout, [1.0, 1.0]), (), rollout)
        assert float(metrics["length_mean"]) == 3.0
        assert float(metrics["in_band_ratio"]) == 1.0


def test_seed_fault_4_no_jump_at_the_edge():
    """Measured from the edge, the first token outside costs least and each next one more."""
    costs, _ = penalties(length_band(4, 8, weight=1.0, cap=None), [4, 8, 9, 10, 11, 12])
    np.testing.assert_allclose(costs, np.array([0, 0, 1, 4, 9, 16]) / 16, rtol=1e-6)


def test_seed_fault_5_a_penalty_is_one_number_per_response():
    rollout = make_rollout([6, 9], budget=12)
    transform = length_band(1, 3, weight=0.3)
    shaped, _, _ = transform.apply(make_rewards(rollout, [0, 0]), transform.init(), rollout)
    assert not shaped.token.any()
    landed = token_rewards(shaped, rollout.action_mask)
    np.testing.assert_allclose(landed.sum(axis=-1), [-0.3, -0.3], rtol=1e-6)
    assert jnp.nonzero(landed)[1].tolist() == [2 + 6 - 1, 2 + 9 - 1]


@few
@given(st.lists(st.integers(0, 16), min_size=6, max_size=6))
def test_seed_fault_6_the_cap_bounds_every_penalty(lengths):
    costs, _ = penalties(length_band(2, 4, weight=0.3, cap=2.0), lengths)
    assert all(0.0 <= cost <= 0.6 + 1e-6 for cost in costs)


def test_seed_fault_8_nothing_syncs_with_the_host():
    """Traced, a ``float()`` of any array would raise."""
    rollout = make_rollout([6, 9])
    rewards = make_rewards(rollout, [1.0, 0.0])
    highest = drift(3.0, limit=2.0, factor=0.5)
    for transform in (
        length_band(1, highest, weight=0.3, relative_to_reward=0.1),
        length_metrics(1, 3),
    ):
        _, _, metrics = jax.eval_shape(transform.apply, rewards, transform.init(), rollout)
        assert all(metric.shape == () for metric in metrics.values())


def test_seed_fault_9_the_p95_is_measured_and_truncation_counted_apart():
    rollout = make_rollout([1, 2, 3, 6], truncated=[False, False, False, True])
    _, _, metrics = length_metrics(2, 3).apply(make_rewards(rollout, [1, 0, 1, 0]), (), rollout)
    expected = {
        "response_length_p95": 3 + 0.85 * 3,  # at 0.95·3 = 2.85 of the sorted lengths
        "in_band_ratio": 0.5,
        "truncated_ratio": 0.25,
        "length_correct_mean": 2.0,
        "length_wrong_mean": 4.0,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)


def test_without_wrong_responses_their_mean_length_is_0():
    rollout = make_rollout([1, 3])
    _, _, metrics = length_metrics(2, 3).apply(make_rewards(rollout, [1, 1]), (), rollout)
    assert float(metrics["length_wrong_mean"]) == 0.0


@few
@given(st.lists(st.integers(0, 16), min_size=2, max_size=2), st.floats(0.01, 0.99))
def test_correct_beats_wrong_at_any_length_if_weight_times_cap_is_below_1(lengths, weight):
    (correct, wrong), _ = penalties(length_band(4, 6, weight=weight), lengths, raw=[1.0, 0.0])
    assert 1.0 - correct > 0.0 - wrong


@few
@given(st.lists(st.integers(0, 30), min_size=6, max_size=6))
def test_distance_is_zero_inside_and_grows_token_by_token_outside(lengths):
    got = band_distance(jnp.array(lengths), 10, 20)
    assert got.tolist() == [float(max(10 - n, n - 20, 0)) for n in lengths]


def test_padding_columns_change_nothing():
    transform = length_band(2, 3, weight=0.3)
    lengths = [1, 4, 6]
    assert penalties(transform, lengths, budget=6) == penalties(transform, lengths, budget=16)


def test_compiled_equals_eager():
    highest, weight = drift(4.0, limit=2.0, factor=0.5), drift(0.3, limit=0.6, factor=2.0)
    transform = length_band(2, highest, weight)
    rollout = make_rollout([3, 5, 6])
    rewards = make_rewards(rollout, [1.0, 0.0, 1.0])
    eager = transform.apply(rewards, transform.init(), rollout)
    compiled = jax.jit(transform.apply)(rewards, transform.init(), rollout)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), compiled, eager)


def test_empty_responses_stay_finite():
    transform = length_band(1, 3, weight=0.3, relative_to_reward=0.1)
    costs, state = penalties(transform, [0, 0])
    assert costs == [0.0, 0.0]  # no reward, hence no penalty beside it
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def after_overlong_batches(transform, count):
    state = transform.init()
    for _ in range(count):
        _, state = penalties(transform, [5, 6], state=state)
    return penalties(transform, [5, 6], state=state)[0]


def test_a_weight_under_control_rises_after_three_overlong_batches():
    transform = length_band(1, 4, drift(0.3, limit=0.9, factor=2.0), scale_tokens=1.0, cap=None)
    np.testing.assert_allclose(after_overlong_batches(transform, 2), [0.3, 1.2], rtol=1e-6)
    np.testing.assert_allclose(after_overlong_batches(transform, 3), [0.6, 2.4], rtol=1e-6)


def test_a_maximum_under_control_falls_but_not_below_the_minimum():
    transform = length_band(
        3, drift(4.0, limit=1.0, factor=0.5), weight=1.0, scale_tokens=1.0, cap=None
    )
    assert after_overlong_batches(transform, 2) == [1.0, 4.0]
    assert after_overlong_batches(transform, 3) == [4.0, 9.0]  # 4 · 0.5 = 2, kept at 3
    assert after_overlong_batches(transform, 9) == [4.0, 9.0]


def test_overlong_is_judged_by_the_configured_maximum():
    """Else a tightened maximum would itself make healthy batches look overlong, for ever."""
    transform = length_band(1, drift(4.0, limit=2.0, factor=0.5), weight=1.0)
    state = transform.init()
    for _ in range(3):
        _, state = penalties(transform, [6, 6], state=state)
    assert float(state.max_tokens.value) == 2.0
    for _ in range(3):
        _, state = penalties(transform, [3, 3], state=state)
    assert float(state.max_tokens.value) == 4.0


def test_relative_to_reward_holds_the_mean_penalty_to_its_share():
    # penalties 0 and 9 have mean 4.5; the share of the reward's 0.5 is 0.05
    transform = length_band(
        1, 3, weight=1.0, scale_tokens=1.0, cap=None, relative_to_reward=0.1
    )  # fmt: skip
    costs, state = penalties(transform, [2, 6], raw=[1.0, 0.0])
    np.testing.assert_allclose(costs, [0.0, 0.1], rtol=1e-5, atol=1e-7)
    # then nothing is earned: of the reward 0.9·0.5 remains over a weight of 1.9
    costs, state = penalties(transform, [2, 6], state=state)
    np.testing.assert_allclose(costs, [0.0, 0.2 * 0.45 / 1.9], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(state.reward_scale, (0.45, 1.9), rtol=1e-6)


def test_without_relative_to_reward_no_scale_is_kept():
    assert length_band(1, 3).init().reward_scale == ()


def test_the_wrong_may_be_spared():
    transform = length_band(2, 4, weight=0.5, correct_only=True)
    costs, _ = penalties(transform, [6, 6, 3], raw=[1.0, 0.0, 1.0])
    assert costs == [0.5, 0.0, 0.0]
    # so that the share of the reward goes to those who pay: 0.1·⅔ is less than a mean of ⅙
    transform = length_band(2, 4, weight=0.5, correct_only=True, relative_to_reward=0.1)
    costs, _ = penalties(transform, [6, 6, 3], raw=[1.0, 0.0, 1.0])
    np.testing.assert_allclose(costs, [0.2, 0.0, 0.0], rtol=1e-5)


# Of these only the first two count: 2 and 6 tokens, of which one is correct.
SOME = make_rollout([2, 6, 6, 1], truncated=[False, True, True, True])
SOME_REWARDS = make_rewards(SOME, [1.0, 0.0, 1.0, 0.0]).replace(
    counted=jnp.array([True, True, False, False])
)


def test_trl_truncated_rows_in_the_statistics():
    """Responses that are left out are neither measured nor charged for."""
    transform = length_band(2, drift(4.0, limit=2.0, factor=0.5), weight=0.5)
    _, state, metrics = transform.apply(SOME_REWARDS, transform.init(), SOME)
    assert float(metrics["length_penalty_mean"]) == 0.25  # ½·(2/2)² once in two
    assert float(metrics["length_overlong_tokens"]) == 0.0
    assert int(state.max_tokens.streak) == -1
    transform = length_band(2, 4, weight=0.5, relative_to_reward=0.1)
    _, state, metrics = transform.apply(SOME_REWARDS, transform.init(), SOME)
    assert float(state.reward_scale.total) == 0.5
    np.testing.assert_allclose(metrics["length_penalty_mean"], 0.05, rtol=1e-5)
    _, _, metrics = length_metrics(2, 4).apply(SOME_REWARDS, (), SOME)
    expected = {
        "length_mean": 4.0,
        "length_std": 2.0,
        "response_length_p95": 2 + 0.95 * 4,
        "in_band_ratio": 0.5,
        "truncated_ratio": 0.5,
        "length_correct_mean": 2.0,
        "length_wrong_mean": 6.0,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)


def test_a_batch_of_which_nothing_counts_has_finite_metrics():
    rewards = SOME_REWARDS.replace(counted=jnp.zeros(4, bool))
    _, _, metrics = length_metrics(2, 4).apply(rewards, (), SOME)
    assert all(float(metric) == 0.0 for metric in metrics.values())


@pytest.mark.parametrize("band", [(5, 3), (-1, 3)])
def test_a_band_upside_down_is_refused(band):
    with pytest.raises(UserError, match="0 <= min_tokens <= max_tokens; got min_tokens="):
        length_band(*band)
    with pytest.raises(UserError, match="0 <= min_tokens <= max_tokens"):
        length_metrics(*band)


@pytest.mark.parametrize(
    "keywords",
    [
        {"cap": 0.0},
        {"cap": -1.0},
        {"scale_tokens": -1.0},
        {"scale_tokens": 0.0},  # not silently the default
        {"weight": -0.3},  # pays for length: fault 1 by config
        {"relative_to_reward": -0.1},
        {"relative_to_reward": 0.1, "weight": drift(0.3, limit=0.6, factor=2.0)},
        {"relative_to_reward": 0.0},
    ],
)
def test_numbers_that_make_no_sense_are_refused(keywords):
    with pytest.raises(UserError):
        length_band(1, 3, **keywords)
