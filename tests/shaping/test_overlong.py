"""What it costs to use up the budget."""

import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.shaping import missing_eos, soft_overlong


def costs(transform, lengths, raw=None, truncated=None):
    """What each response pays; the responses are wrong unless ``raw`` says otherwise."""
    rollout = make_rollout(lengths, budget=32, truncated=truncated)
    rewards = make_rewards(rollout, [0.0] * len(lengths) if raw is None else raw)
    shaped, state, _ = transform.apply(rewards, transform.init(), rollout)
    assert state == ()
    return np.asarray(rewards.response - shaped.response)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_soft_overlong_by_hand():
    # DAPO's eq. 13 for L = 20 and a buffer of 4: a quarter for each token past 16
    close(costs(soft_overlong(20, 4), [1, 16, 17, 18, 19, 20]), [0, 0, 0.25, 0.5, 0.75, 1])
    close(costs(soft_overlong(20, 4, penalty=0.5), [16, 18, 20]), [0, 0.25, 0.5])


def test_the_buffer_is_a_fifth_of_the_budget_by_default():
    close(costs(soft_overlong(20), [16, 17, 20]), [0, 0.25, 1])
    close(costs(soft_overlong(3), [2, 3]), [0, 1])  # one token at least
    close(costs(soft_overlong(10, 10), [0, 5, 10]), [0, 0.5, 1])


def test_verl_nemo_tunix_overlong_without_a_lower_clamp():
    """Theirs is linear for ever: three budgets would cost 11."""
    close(costs(soft_overlong(10, 2), [10, 11, 30]), [1, 1, 1])


def test_skyrl_truncated_beats_a_wrong_short_one():
    """Theirs gives whatever is past the budget a reward of 0, where a wrong short one has −1."""
    rollout = make_rollout([30, 20, 2], budget=32, truncated=[True, True, False])
    transform = soft_overlong(20, 4)
    shaped, _, _ = transform.apply(make_rewards(rollout, [-1.0] * 3), (), rollout)
    close(shaped.response, [-2.0, -2.0, -1.0])


@few
@given(st.lists(st.integers(0, 32), min_size=6, max_size=6))
def test_the_longer_the_dearer_between_0_and_the_penalty(lengths):
    paid = costs(soft_overlong(20, 8, penalty=0.7), sorted(lengths))
    assert (np.diff(paid) >= 0).all()
    assert paid.min() >= 0
    assert paid.max() <= 0.7 + 1e-6


def test_missing_eos_by_hand():
    truncated = [True, False, True, False]
    close(costs(missing_eos(), [32, 32, 5, 5], truncated=truncated), [1, 0, 1, 0])
    close(costs(missing_eos(0.25), [32, 32, 5, 5], truncated=truncated), [0.25, 0, 0.25, 0])


def test_one_eos_id_known_where_a_chat_model_has_several():
    """The sampler says what was cut off: which token ended the others is not looked at."""
    rollout = make_rollout([4, 4, 4], truncated=[False, False, True])
    ends = rollout.replace(tokens=rollout.tokens.at[:, 5].set(jnp.array([2, 7, 7])))
    shaped, _, _ = missing_eos().apply(make_rewards(ends, [0.0] * 3), (), ends)
    assert shaped.response.tolist() == [0.0, 0.0, -1.0]


@pytest.mark.parametrize(
    "transform", [soft_overlong(20, correct_only=True), missing_eos(correct_only=True)]
)
def test_the_wrong_may_be_spared(transform):
    paid = costs(transform, [32, 32], raw=[1.0, 0.0], truncated=[True, True])
    close(paid, [1, 0])


@pytest.mark.parametrize(
    "keywords",
    [
        {"budget_tokens": 10, "buffer_tokens": 0},
        {"budget_tokens": 10, "buffer_tokens": 11},
        {"budget_tokens": 0},
        {"budget_tokens": 10, "penalty": 0.0},
        {"budget_tokens": 10, "penalty": -1.0},  # pays for length
    ],
)
def test_an_overlong_penalty_that_makes_no_sense_is_refused(keywords):
    with pytest.raises(UserError, match="soft_overlong: needs 0 < buffer_tokens <= budget_tokens"):
        soft_overlong(**keywords)


@pytest.mark.parametrize("penalty", [0.0, -1.0])
def test_a_missing_eos_that_is_no_penalty_is_refused(penalty):
    with pytest.raises(UserError, match="missing_eos: penalty must be positive"):
        missing_eos(penalty)
