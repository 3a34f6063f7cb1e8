"""Where rewards land, which tokens are learned from, and what is still to come at each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout, pad_columns
from hypothesis import given
from hypothesis import strategies as st

from rljax.advantages import learned_tokens, rewards_to_go, token_rewards


def test_the_reward_lands_on_the_last_response_token():
    """The shift test of rewards: column 2 is the first of the response, lengths are 1, 3, 6, 0."""
    rollout = make_rollout([1, 3, 6, 0])
    landed = token_rewards(make_rewards(rollout, [1.0, 2.0, 3.0, 4.0]), rollout.action_mask)
    expected = np.zeros((4, 8))
    expected[0, 2], expected[1, 4], expected[2, 7] = 1.0, 2.0, 3.0
    assert landed.tolist() == expected.tolist()


def test_token_rewards_keep_their_column():
    rollout = make_rollout([2])
    rewards = make_rewards(rollout, [1.0]).replace(token=jnp.arange(8.0)[None])
    assert token_rewards(rewards, rollout.action_mask)[0].tolist() == [0, 0, 2, 4, 0, 0, 0, 0]


def test_seed_fault_5_nothing_is_spread_over_the_padding():
    rollout = make_rollout([2, 5])
    rewards = make_rewards(rollout, [0.0, 0.0]).replace(response=jnp.array([-0.5, -0.25]))
    landed = token_rewards(rewards, rollout.action_mask)
    assert (landed != 0).sum(axis=-1).tolist() == [1, 1]
    assert landed.sum(axis=-1).tolist() == [-0.5, -0.25]


def test_tunix_a_reward_of_0_7_became_0():
    rollout = make_rollout([2])
    landed = token_rewards(make_rewards(rollout, [0.7]), rollout.action_mask)
    np.testing.assert_allclose(landed[0, 3], 0.7, rtol=1e-6)


def test_learned_tokens_are_those_of_the_responses_that_count():
    rollout = make_rollout([2, 3, 1])
    rewards = make_rewards(rollout, [1.0, 0.0, 1.0]).replace(counted=jnp.array([True, False, True]))
    expected = np.zeros((3, 8), bool)
    expected[0, 2:4], expected[2, 2] = True, True
    assert learned_tokens(rewards, rollout).tolist() == expected.tolist()


def test_to_go_by_hand():
    """γ = 0.5, a reward of 1 at the end, a price of 0.5 on the first token of each."""
    rollout = make_rollout([3, 1])
    rewards = make_rewards(rollout, [1.0, 2.0])
    rewards = rewards.replace(token=rewards.token.at[:, 2].set(-0.5))
    to_go = rewards_to_go(rewards, rollout, gamma=0.5)
    expected = np.zeros((2, 8))
    expected[0, 2:5] = [-0.5 + 0.25, 0.5, 1.0]
    expected[1, 2] = 1.5
    assert to_go.tolist() == expected.tolist()


def with_mask(tokens, mask, response) -> tuple:
    """A rollout of one row with any action mask, and its rewards."""
    rollout = make_rollout([len(mask)], prompt=0, budget=len(mask))
    rollout = rollout.replace(action_mask=jnp.array([mask]))
    rewards = make_rewards(rollout, [response])
    return rewards.replace(token=jnp.array([tokens], jnp.float32)), rollout


def test_to_go_passes_over_tool_output():
    rewards, rollout = with_mask([1, 9, 9, 0], [True, False, False, True], 4.0)
    assert rewards_to_go(rewards, rollout, gamma=0.5)[0].tolist() == [3.0, 0.0, 0.0, 4.0]


numbers = st.floats(-2, 2, width=32)
columns = st.tuples(numbers, st.booleans())


@few
@given(st.lists(columns, min_size=5, max_size=5), numbers, st.floats(0, 1))
def test_to_go_equals_a_plain_loop(columns, response, gamma):
    tokens, mask = zip(*columns, strict=True)
    expected, total = np.zeros(5), response
    for t in reversed(np.flatnonzero(mask)):
        total = tokens[t] + (response if t == max(np.flatnonzero(mask)) else gamma * total)
        expected[t] = total
    got = rewards_to_go(*with_mask(tokens, mask, response), gamma=gamma)
    np.testing.assert_allclose(got[0], expected, atol=1e-5)


def test_undiscounted_to_go_is_all_that_a_response_earned_at_its_first_token():
    rollout = make_rollout([3, 1, 6])
    rewards = make_rewards(rollout, [1.0, 0.25, -2.0])
    rewards = rewards.replace(token=jnp.where(rollout.action_mask, -0.125, 0.0))
    to_go = rewards_to_go(rewards, rollout, gamma=1.0)
    np.testing.assert_allclose(to_go[:, 2], rewards.shaped, rtol=1e-6)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_to_go_does_not_depend_on_padding(gamma):
    rollout = make_rollout([3, 1])
    rewards = make_rewards(rollout, [1.0, 2.0]).replace(token=jnp.arange(16.0).reshape(2, 8))
    wide = rollout.replace(action_mask=pad_columns(rollout.action_mask, 3, 2))
    padded = rewards_to_go(
        rewards.replace(token=pad_columns(rewards.token, 3, 2, 7.0)), wide, gamma=gamma
    )
    plain = rewards_to_go(rewards, rollout, gamma=gamma)
    np.testing.assert_array_equal(padded, pad_columns(plain, 3, 2))


def test_nothing_is_to_go_in_an_all_masked_batch():
    rollout = make_rollout([0, 0])
    assert not rewards_to_go(make_rewards(rollout, [1.0, 2.0]), rollout, gamma=0.5).any()


def test_compiled_equals_eager():
    rollout = make_rollout([3, 1])
    rewards = make_rewards(rollout, [1.0, 2.0])
    compiled = jax.jit(rewards_to_go, static_argnames="gamma")(rewards, rollout, gamma=0.5)
    np.testing.assert_allclose(compiled, rewards_to_go(rewards, rollout, gamma=0.5), rtol=1e-6)
