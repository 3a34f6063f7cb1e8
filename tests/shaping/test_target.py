"""Length against a target or the budget: the published numbers, and what is refused."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.shaping import cosine, l1_exact, l1_max, laser, o1_pruner


def worth(transform, lengths, correct, **extras):
    """What each response is worth, with a single reward of 0 or 1."""
    rollout = make_rollout(
        lengths, budget=max(32, *lengths), extras={k: jnp.asarray(v) for k, v in extras.items()}
    )
    rewards = make_rewards(rollout, correct)
    shaped, state, _ = transform.apply(rewards, transform.init(), rollout)
    assert state == ()
    return np.asarray(shaped.response)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_cosine_by_hand():
    # a quarter of the way, 1 + cos(π/4) = 1 + √½; half-way the mean of both ends
    quarter = 0.5 + 0.25 * (1 + math.sqrt(0.5))
    got = worth(cosine(8), [0, 2, 4, 8] * 2, [1.0] * 4 + [0.0] * 4)
    close(got, [1.0, quarter, 0.75, 0.5, -1.0, -quarter, -0.75, -0.5])


def test_cosine_of_other_values_by_hand():
    paper = cosine(8, correct_short=2.0, correct_long=1.0, wrong_short=-10.0, wrong_long=0.0)
    close(worth(paper, [0, 4, 8] * 2, [1.0] * 3 + [0.0] * 3), [2.0, 1.5, 1.0, -10.0, -5.0, 0.0])


def test_open_r1_a_cosine_that_climbs_again():
    got = worth(cosine(8), [8, 9, 12, 16, 24] * 2, [1.0] * 5 + [0.0] * 5)
    close(got, [0.5] * 5 + [-0.5] * 5)


@few
@given(st.lists(st.integers(0, 20), min_size=8, max_size=8))
def test_cosine_never_turns(lengths):
    lengths = sorted(lengths)
    correct = worth(cosine(10), lengths, [1.0] * len(lengths))
    wrong = worth(cosine(10), lengths, [0.0] * len(lengths))
    assert (np.diff(correct) <= 1e-6).all()
    assert (np.diff(wrong) >= -1e-6).all()


def test_tunix_open_r1_characters_against_a_limit_in_tokens():
    """Lengths are those of the action mask: what the tokens spell does not matter."""
    rollout = make_rollout([4, 4])
    spelled = rollout.replace(tokens=rollout.tokens.at[1].set(9999))
    transform = cosine(8)
    shaped, _, _ = transform.apply(make_rewards(spelled, [1.0, 1.0]), (), spelled)
    close(shaped.response, [0.75, 0.75])


def test_l1_exact_by_hand():
    got = worth(l1_exact(5, alpha=0.1), [5, 3, 9, 5, 1], [1.0, 1.0, 1.0, 0.0, 0.0])
    close(got, [1.0, 0.8, 0.6, 0.0, -0.4])
    # the paper's 0.0003: a thousand tokens off cost 0.3
    close(worth(l1_exact(5), [1005], [1.0]), [0.7])


def test_l1_exact_is_capped_where_the_paper_is_not():
    close(worth(l1_exact(5, alpha=0.1), [25, 25], [1.0, 0.0]), [0.0, -1.0])
    close(worth(l1_exact(5, alpha=0.1, cap=0.5), [25, 25], [1.0, 0.0]), [0.5, -0.5])
    close(worth(l1_exact(5, alpha=0.1, cap=None), [25, 25], [1.0, 0.0]), [-1.0, -2.0])


def test_l1_max_by_hand():
    transform = l1_max(10, alpha=0.1)
    # 0.5 on target, a tenth for each token saved or overspent, between 0 and 1
    got = worth(transform, [10, 7, 1, 13, 20, 7], [1.0] * 5 + [0.0])
    close(got, [0.5, 0.8, 1.0, 0.2, 0.0, 0.0])
    close(worth(l1_max(10, alpha=0.1, delta=0.7), [10, 13], [1.0, 1.0]), [0.7, 0.4])
    close(worth(l1_max(5), [1005], [1.0]), [0.2])


def test_laser_by_hand():
    got = worth(laser(4), [3, 4, 5, 3, 5], [1.0, 1.0, 1.0, 0.0, 0.0])
    close(got, [1.5, 1.5, 1.0, 0.0, 0.0])
    close(worth(laser(4, alpha=0.2), [4], [1.0]), [1.2])


def test_o1_pruner_by_hand():
    # n̄/n − 1 is 1, 0, −½; an accuracy of 0.75 before leaves 2·0.25 to the right, −2·0.75 else
    transform = o1_pruner(reference_tokens=8, reference_accuracy=0.75)
    got = worth(transform, [4, 8, 16, 4, 16], [1.0, 1.0, 1.0, 0.0, 0.0])
    close(got, [1.5, 0.5, 0.0, -0.5, -2.0])
    heavier = o1_pruner(reference_tokens=8, reference_accuracy=0.5, accuracy_weight=5.0)
    close(worth(heavier, [16, 16], [1.0, 0.0]), [2.0, -3.0])


def test_o1_pruner_is_capped_where_the_paper_is_not():
    numbers = {"reference_tokens": 8, "reference_accuracy": 0.5}
    close(worth(o1_pruner(**numbers), [1, 0], [1.0, 0.0]), [2.0, 0.0])
    close(worth(o1_pruner(**numbers, cap=0.25), [1, 16], [1.0, 0.0]), [1.25, -1.25])
    close(worth(o1_pruner(**numbers, cap=None), [1, 0], [1.0, 0.0]), [8.0, 6.0])


def test_o1_pruner_may_spare_the_wrong():
    transform = o1_pruner(reference_tokens=8, reference_accuracy=0.5, correct_only=True)
    close(worth(transform, [4, 4, 16], [1.0, 0.0, 0.0]), [2.0, -1.0, -1.0])


def test_targets_of_each_prompt_come_from_the_data():
    lengths, correct = [4, 4, 4], [1.0, 1.0, 0.0]
    columns = {"target_tokens": [4, 2, 2], "mine": [9.0, 4.0, 3.0]}
    close(worth(l1_exact(alpha=0.1), lengths, correct, **columns), [1.0, 0.8, -0.2])
    close(worth(l1_exact("mine", alpha=0.1), lengths, correct, **columns), [0.5, 1.0, -0.1])
    close(worth(l1_max(alpha=0.1), lengths, correct, **columns), [0.5, 0.3, 0.0])
    close(worth(laser(), lengths, correct, **columns), [1.5, 1.0, 0.0])


def test_the_references_of_each_prompt_come_from_the_data():
    columns = {"reference_tokens": [4, 8, 2], "reference_accuracy": [1.0, 0.5, 0.0]}
    close(worth(o1_pruner(), [4, 4, 4], [1.0, 1.0, 0.0], **columns), [0.0, 2.0, -0.5])
    mixed = o1_pruner(reference_tokens="reference_tokens", reference_accuracy=0.5)
    close(worth(mixed, [4, 4, 4], [1.0, 1.0, 0.0], **columns), [1.0, 2.0, -1.5])


@pytest.mark.parametrize("make", [l1_exact, l1_max, laser])
def test_a_column_that_is_missing_or_no_numbers_is_refused(make):
    name = make.__name__
    with pytest.raises(UserError, match=f'^{name}: the data has no column "target_tokens"; .*num'):
        worth(make(), [4], [1.0], target=[3])
    with pytest.raises(UserError, match='did you mean "target_tokens"'):
        worth(make("target_token"), [4], [1.0], target_tokens=[3])
    for text in ([[1, 2]], [True]):
        with pytest.raises(UserError, match='column "target_tokens" must hold a number'):
            worth(make(), [4], [1.0], target_tokens=text)


def test_o1_pruner_names_the_column_that_is_missing():
    with pytest.raises(UserError, match='o1_pruner: the data has no column "reference_tokens"'):
        worth(o1_pruner(), [4], [1.0], reference_accuracy=[0.5])
    with pytest.raises(UserError, match='o1_pruner: the data has no column "reference_accuracy"'):
        worth(o1_pruner(), [4], [1.0], reference_tokens=[5])


@pytest.mark.parametrize(
    ("make", "keywords", "named"),
    [
        (cosine, {"budget_tokens": 0}, "budget_tokens must be positive; got 0"),
        (cosine, {"budget_tokens": 8, "correct_long": -0.5}, "must earn more than a wrong one"),
        (cosine, {"budget_tokens": 8, "wrong_short": 0.5}, "must earn more than a wrong one"),
        (cosine, {"budget_tokens": 8, "correct_short": -0.5}, "must earn more than a wrong one"),
        (cosine, {"budget_tokens": 8, "wrong_long": 0.5}, "must earn more than a wrong one"),
        (l1_exact, {"target": 0}, "target must be positive"),
        (l1_exact, {"alpha": 0.0}, "alpha must be positive"),
        (l1_exact, {"cap": -1.0}, "cap must be positive"),
        (l1_exact, {"cap": math.inf}, "cap must be positive"),
        (l1_max, {"target": -4}, "target must be positive"),
        (l1_max, {"alpha": -0.1}, "alpha must be positive"),
        (l1_max, {"delta": math.nan}, "delta must be positive"),
        (laser, {"target": 0}, "target must be positive"),
        (laser, {"alpha": -0.5}, "alpha must be positive"),
        (o1_pruner, {"reference_tokens": 0.0}, "reference_tokens must be positive"),
        (o1_pruner, {"accuracy_weight": 0.0}, "accuracy_weight must be positive"),
        (o1_pruner, {"cap": 0.0}, "cap must be positive"),
        (o1_pruner, {"reference_accuracy": 1.5}, r"reference_accuracy must lie in \[0, 1\]"),
        (o1_pruner, {"reference_accuracy": -0.5}, r"reference_accuracy must lie in \[0, 1\]"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, keywords, named):
    with pytest.raises(UserError, match=f"^{make.__name__}: .*{named}"):
        make(**keywords)
