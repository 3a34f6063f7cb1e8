"""GAE by hand, against a plain loop, and under every mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout, pad_columns
from hypothesis import given
from hypothesis import strategies as st

from rljax.advantages import discounted_gae, gae

# γ = λ = 0.5, backwards:
#   t=2: δ = 1 − 0.5 = 0.5                    A = 0.5
#   t=1: δ = 0 + 0.5·0.5 − 0.25 = 0           A = 0 + 0.25·0.5 = 0.125
#   t=0: δ = 0 + 0.5·0.25 − 0.5 = −0.375      A = −0.375 + 0.25·0.125 = −0.34375
REWARD, VALUE = [0.0, 0.0, 1.0], [0.5, 0.25, 0.5]
ADVANTAGE, RETURN = [-0.34375, 0.125, 0.5], [0.15625, 0.375, 1.0]
HALF = {"gamma": 0.5, "lam": 0.5}


def test_by_hand():
    advantages, returns = discounted_gae(
        jnp.array([REWARD]), jnp.array([VALUE]), jnp.ones((1, 3), bool), **HALF
    )
    assert advantages[0].tolist() == ADVANTAGE
    assert returns[0].tolist() == RETURN


@pytest.mark.parametrize(("left", "right"), [(2, 0), (0, 2), (1, 3)])
def test_padding_columns_change_nothing(left, right):
    """The shift test: prompt and padding hold garbage, and nothing leaks from the next column."""
    advantages, returns = discounted_gae(
        pad_columns(jnp.array([REWARD]), left, right, 7.0),
        pad_columns(jnp.array([VALUE]), left, right, -5.0),
        pad_columns(jnp.ones((1, 3), bool), left, right),
        **HALF,
    )
    response = slice(left, left + 3)
    assert advantages[0, response].tolist() == ADVANTAGE
    assert returns[0, response].tolist() == RETURN
    outside = np.delete(np.arange(3 + left + right), response)
    assert not advantages[0, outside].any()
    assert not returns[0, outside].any()


def test_tool_output_inside_a_response_is_passed_over():
    """V_next and A are held over the masked columns 1 and 2."""
    advantages, returns = discounted_gae(
        jnp.array([[0.0, 9.0, 9.0, 0.0, 1.0]]),
        jnp.array([[0.5, -9.0, -9.0, 0.25, 0.5]]),
        jnp.array([[True, False, False, True, True]]),
        **HALF,
    )
    a, b, c = ADVANTAGE
    assert advantages[0].tolist() == [a, 0.0, 0.0, b, c]
    a, b, c = RETURN
    assert returns[0].tolist() == [a, 0.0, 0.0, b, c]


numbers = st.floats(-2, 2, width=32)
columns = st.tuples(numbers, numbers, st.booleans())


@few
@given(st.lists(columns, min_size=5, max_size=5), st.floats(0, 1), st.floats(0, 1))
def test_equal_to_a_plain_loop(columns, gamma, lam):
    rewards, values, mask = (np.array([column]) for column in zip(*columns, strict=True))
    got, returns = discounted_gae(
        jnp.asarray(rewards, jnp.float32),
        jnp.asarray(values, jnp.float32),
        jnp.asarray(mask),
        gamma=gamma,
        lam=lam,
    )
    expected, next_value, advantage = np.zeros(5), 0.0, 0.0
    for t in reversed(np.flatnonzero(mask[0])):
        delta = rewards[0, t] + gamma * next_value - values[0, t]
        advantage = delta + gamma * lam * advantage
        expected[t], next_value = advantage, values[0, t]
    np.testing.assert_allclose(got[0], expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, got + values, 0.0), atol=1e-5)


def test_undiscounted_returns_are_what_is_still_to_come():
    rollout = make_rollout([3, 1], values=[[0.3] * 8, [0.9] * 8])
    _, returns = gae(make_rewards(rollout, [1.0, 0.25]), rollout)
    expected = [[0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0.25, 0, 0, 0, 0, 0]]
    np.testing.assert_allclose(returns, expected, atol=1e-6)


def test_compiled_equals_eager():
    rollout = make_rollout([3, 1], values=[[0.3, 0.1] * 4, [0.9] * 8])
    rewards = make_rewards(rollout, [1.0, 0.25])
    for eager, compiled in zip(gae(rewards, rollout), jax.jit(gae)(rewards, rollout), strict=True):
        np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-6)


def test_whitened_over_the_batch_and_the_returns_are_not():
    rollout = make_rollout([3, 1, 6], values=[[0.3, 0.1] * 4, [0.9] * 8, [0.2, 0.4] * 4])
    rewards = make_rewards(rollout, [1.0, 0.25, 0.0])
    plain, returns = gae(rewards, rollout, whiten=False)
    whitened, same_returns = gae(rewards, rollout)
    chosen = np.asarray(whitened)[np.asarray(rollout.action_mask)]
    np.testing.assert_allclose(chosen.mean(), 0.0, atol=1e-6)
    np.testing.assert_allclose(chosen.var(ddof=1), 1.0, rtol=1e-5)
    assert not whitened[~rollout.action_mask].any()
    np.testing.assert_array_equal(returns, same_returns)
    np.testing.assert_allclose(
        returns, jnp.where(rollout.action_mask, plain + rollout.values, 0.0), atol=1e-6
    )


def test_gradient_signs():
    """A later reward raises every earlier advantage; a value lowers its own."""
    mask = jnp.ones((1, 3), bool)

    def first(rewards, values):
        return discounted_gae(rewards, values, mask, **HALF)[0][0, 0]

    by_reward, by_value = jax.grad(first, (0, 1))(jnp.array([REWARD]), jnp.array([VALUE]))
    np.testing.assert_allclose(by_reward[0], [1.0, 0.25, 0.0625])
    # −1 for its own; γ − γλ = 0.25 for the next; λγ·(γ − γλ) = 0.0625 for the one after
    np.testing.assert_allclose(by_value[0], [-1.0, 0.25, 0.0625])


def test_an_all_masked_batch_is_zero():
    rollout = make_rollout([0, 0], values=[[0.5] * 8] * 2)
    advantages, returns = gae(make_rewards(rollout, [1.0, 1.0]), rollout)
    assert not advantages.any()
    assert not returns.any()


def test_seed_fault_2_shaping_reaches_the_advantages():
    rollout = make_rollout([2], values=[[0.0] * 8])
    rewards = make_rewards(rollout, [1.0])
    shaped = rewards.replace(response=jnp.array([0.4]))
    advantages, _ = gae(shaped, rollout, whiten=False)
    np.testing.assert_allclose(advantages[0, 2:4], [0.4, 0.4], rtol=1e-6)


def test_responses_that_do_not_count_get_0_and_do_not_enter_the_whitening():
    values = [[0.3, 0.1] * 4, [0.9] * 8, [0.2, 0.4] * 4]
    rollout = make_rollout([3, 1, 6], values=values)
    rewards = make_rewards(rollout, [1.0, 9.0, 0.0])
    advantages, _ = gae(rewards.replace(counted=jnp.array([True, False, True])), rollout)
    pair = make_rollout([3, 6], values=values[::2])
    expected, _ = gae(make_rewards(pair, [1.0, 0.0]), pair)
    np.testing.assert_allclose(advantages[::2], expected, rtol=1e-5, atol=1e-6)
    assert not advantages[1].any()
    plain, _ = gae(rewards.replace(counted=rewards.raw < 2), rollout, whiten=False)
    assert not plain[1].any()
    assert plain[::2].any(axis=-1).all()


def test_the_returns_of_responses_that_count_do_not_depend_on_the_others():
    rollout = make_rollout([3, 1], values=[[0.3, 0.1] * 4, [0.9] * 8])
    _, returns = gae(make_rewards(rollout, [1.0, 0.25]), rollout, lam=0.5)
    _, others = gae(make_rewards(rollout, [1.0, 7.0]), rollout, lam=0.5)
    np.testing.assert_array_equal(returns[0], others[0])


# One response of REWARD and VALUE, and one of a single token of reward 1 and value 0.25.
TWO = make_rollout([3, 1], prompt=0, budget=3, values=[VALUE, [0.25, 9.0, 9.0]])


def test_length_alpha_by_hand():
    """λ = 1 − 1/(0.5·3) = 1/3 for three tokens, and for one 1 − 1/0.5, which is held at 0."""
    advantages, returns = gae(
        make_rewards(TWO, [1.0, 1.0]), TWO, gamma=0.5, length_alpha=0.5, whiten=False
    )
    # δ = −0.375, 0, 0.5 as above; γλ = 1/6
    expected = [-0.375 + 0.5 / 36, 0.5 / 6, 0.5]
    np.testing.assert_allclose(advantages[0], expected, rtol=1e-6)
    np.testing.assert_allclose(returns[0], np.add(expected, VALUE), rtol=1e-6)
    assert advantages[1].tolist() == [0.75, 0.0, 0.0]


def test_length_alpha_gives_no_lambda_below_0():
    """1 − 1/(0.25·3) would be −1/3."""
    advantages, _ = gae(
        make_rewards(TWO, [1.0, 1.0]), TWO, gamma=0.5, length_alpha=0.25, whiten=False
    )
    np.testing.assert_allclose(advantages[0], [-0.375, 0.0, 0.5], rtol=1e-6)  # δ alone


def test_length_alpha_brings_the_reward_to_the_beginning_of_a_long_response():
    rollout = make_rollout([6, 60], prompt=2, budget=60, values=[[0.0] * 62] * 2)
    rewards = make_rewards(rollout, [1.0, 1.0])
    advantages, _ = gae(rewards, rollout, length_alpha=0.5, whiten=False)
    np.testing.assert_allclose(advantages[0, 2], (2 / 3) ** 5, rtol=1e-5)
    np.testing.assert_allclose(advantages[1, 2], (1 - 1 / 30) ** 59, rtol=1e-5)
    assert float(gae(rewards, rollout, lam=2 / 3, whiten=False)[0][1, 2]) < 1e-9


def test_lam_value_is_the_lambda_of_the_returns_alone():
    rewards = make_rewards(TWO, [1.0, 1.0])
    advantages, returns = gae(rewards, TWO, gamma=0.5, lam=0.0, lam_value=0.5, whiten=False)
    np.testing.assert_allclose(advantages[0], [-0.375, 0.0, 0.5], rtol=1e-6)  # δ alone
    assert returns[0].tolist() == RETURN
    same, _ = gae(rewards, TWO, gamma=0.5, lam=0.5, whiten=False)
    assert same[0].tolist() == ADVANTAGE


def test_length_alpha_leaves_the_returns_to_lam_value():
    _, returns = gae(make_rewards(TWO, [1.0, 1.0]), TWO, gamma=0.5, length_alpha=0.5, lam_value=0.5)
    assert returns[0].tolist() == RETURN


@pytest.mark.parametrize("keywords", [{}, {"length_alpha": 0.5}, {"lam_value": 0.5}], ids=str)
@few
@given(st.permutations(range(3)))
def test_permuting_rows_permutes_the_result(keywords, order):
    rollout = make_rollout([3, 1, 6], values=[[0.3, 0.1] * 4, [0.9] * 8, [0.2, 0.4] * 4])
    rewards = make_rewards(rollout, [1.0, 0.25, 0.0])
    order = jnp.array(order)
    shuffled = jax.tree.map(lambda x: x[order], (rewards, rollout))
    for got, plain in zip(
        gae(*shuffled, gamma=0.9, lam=0.8, **keywords),
        gae(rewards, rollout, gamma=0.9, lam=0.8, **keywords),
        strict=True,
    ):
        np.testing.assert_allclose(got, plain[order], rtol=1e-5, atol=1e-6)
