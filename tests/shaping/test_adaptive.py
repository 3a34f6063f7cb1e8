"""Methods that remember: what they shape by, what moves them, and what leaves them alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.shaping import a_dlp, hapo, laser_d
from rljax.shaping.adaptive import NO_HISTORY, Targets
from rljax.types import ROW, UNSEEN


def step(transform, state, lengths, correct, group=None, *, counted=None, rows=None):
    """What each response is worth, with a single reward of 0 or 1; the new state; the metrics."""
    group = np.zeros(len(lengths), int) if group is None else np.asarray(group)
    rows = group if rows is None else rows
    rollout = make_rollout(
        list(lengths), budget=32, group=group, extras={ROW: jnp.asarray(rows, jnp.int32)}
    )
    rewards = make_rewards(rollout, correct)
    if counted is not None:
        rewards = rewards.replace(counted=jnp.asarray(counted))
    state = transform.init() if state is None else state
    shaped, state, metrics = transform.apply(rewards, state, rollout)
    return np.asarray(shaped.response), state, metrics


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


# Groups of six: four correct, three and one; the budget is 32.
LENGTHS = [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16, 21, 22, 23, 24, 25, 26]
CORRECT = [1.0] * 4 + [0.0] * 2 + [1.0] * 3 + [0.0] * 3 + [1.0] + [0.0] * 5
GROUP = [0] * 6 + [1] * 6 + [2] * 6


def test_laser_d_targets_by_hand():
    # Of six responses an easy prompt promises four correct ones, a medium one two, a hard one one:
    # a quarter, half and all of the lengths are covered by 2, 13 and 26 tokens.
    _, state, _ = step(laser_d(32, decay=0.0), None, LENGTHS, CORRECT, GROUP)
    assert state == (2.0, 13.0, 26.0)
    _, state, _ = step(laser_d(32, decay=0.9), None, LENGTHS, CORRECT, GROUP)
    close(state, (32 - 3.0, 32 - 1.9, 32 - 0.6))


def test_laser_d_rewards_by_the_targets_before_the_batch():
    transform, targets = laser_d(32), Targets(*map(jnp.float32, (2.6, 12.4, 20.0)))
    got, _, _ = step(transform, targets, LENGTHS, CORRECT, GROUP)
    easy, medium, hard = [1.5] * 3 + [1.0], [1.5] * 2 + [1.0], [1.0]  # 3 tokens and 12
    close(got, easy + [0.0] * 2 + medium + [0.0] * 3 + hard + [0.0] * 5)
    got, _, _ = step(laser_d(32, alpha=0.2), None, [32, 9], [1.0, 0.0])
    close(got, [1.2, 0.0])


def test_laser_d_a_class_without_responses_keeps_its_target():
    before = Targets(*map(jnp.float32, (3.0, 12.0, 20.0)))
    _, after, _ = step(laser_d(32, decay=0.0), before, LENGTHS[:6], CORRECT[:6])
    assert after == (2.0, 12.0, 20.0)
    uncounted = [False] * 6 + [True] * 6
    _, after, _ = step(
        laser_d(32, decay=0.0), before, LENGTHS[:12], CORRECT[:12], GROUP[:12], counted=uncounted
    )
    assert after == (3.0, 13.0, 20.0)


def test_laser_d_promises_whole_responses():
    """A third of eight is two and not 2⅔: half of the lengths are covered by 4 tokens."""
    _, state, _ = step(laser_d(32, decay=0.0), None, range(1, 9), [1.0] * 3 + [0.0] * 5)
    assert state == (32.0, 4.0, 32.0)


@pytest.mark.parametrize("start", [5.0, 30.0])
def test_laser_d_a_target_that_is_met_stays_met(start):
    """Approached from below, it would for ever be a hair less than the length it stands for."""
    transform = laser_d(32, decay=0.5)
    state = Targets(*[jnp.float32(start)] * 3)
    for _ in range(12):
        _, state, _ = step(transform, state, [13] * 3, [1.0] * 3)
    got, _, _ = step(transform, state, [13, 14, 13], [1.0] * 3)
    close(got, [1.5, 1.0, 1.5])


# Of 1 to 12 tokens an easy prompt's target covers one in 5, a medium one's one in 3, a hard one's
# all: 3, 4 and 12.
EASY, MEDIUM, HARD = (3.0, 32.0, 32.0), (32.0, 4.0, 32.0), (32.0, 32.0, 12.0)


@pytest.mark.parametrize(
    ("solved", "targets"),
    [(12, EASY), (5, EASY), (4, MEDIUM), (3, MEDIUM), (2, HARD), (0, HARD)],
)
def test_laser_d_classes_begin_at_their_share(solved, targets):
    transform = laser_d(32, easy=5 / 12, medium=3 / 12, decay=0.0)
    correct = [1.0] * solved + [0.0] * (12 - solved)
    _, state, _ = step(transform, None, range(1, 13), correct)
    assert state == targets


@few
@given(st.lists(st.integers(1, 32), min_size=12, max_size=12), st.sampled_from([0, 4, 8]))
def test_laser_d_finds_the_shortest_length_that_promises_a_correct_response(lengths, solved):
    correct = [1.0] * solved + [0.0] * (12 - solved)
    _, state, _ = step(laser_d(32, decay=0.0), None, lengths, correct)
    promised = max(solved, 1)  # each class's least, of 12
    covered = [x for x in range(33) if sum(n <= x for n in lengths) * promised >= 12]
    assert float(state[{8: 0, 4: 1, 0: 2}[solved]]) == covered[0]


def test_a_dlp_by_hand():
    transform = a_dlp(0.5, weight=0.01, rate=0.04, max_weight=0.05)
    # ¾ are correct, a quarter above target: 0.01·n is charged now, 0.02·n next
    lengths, correct = [10, 20, 30, 10], [1.0, 1.0, 1.0, 0.0]
    got, state, _ = step(transform, None, lengths, correct)
    close(got, [0.9, 0.8, 0.7, -0.1])
    close(state.weight, 0.02)
    got, state, _ = step(transform, state, lengths, [0.0] * 4)
    close(got, [-0.2, -0.4, -0.6, -0.2])
    close(state.weight, 0.0)  # 0.02 − 0.04·½


def test_a_dlp_keeps_its_weight_between_0_and_its_bound():
    transform = a_dlp(0.5, weight=0.01, rate=0.04, max_weight=0.025)
    for correct, bound in (([1.0], 0.025), ([0.0], 0.0)):
        state = None
        for _ in range(4):
            _, state, _ = step(transform, state, [10], correct)
        close(state.weight, bound)


def test_a_dlp_measures_accuracy_over_those_that_count():
    transform = a_dlp(0.5, weight=0.01, rate=0.04, max_weight=0.05)
    _, state, _ = step(transform, None, [10] * 3, [1.0, 0.0, 0.0], counted=[True, False, False])
    close(state.weight, 0.03)


def test_a_dlp_is_capped_where_the_paper_is_not():
    for cap, expected in ((1.0, [0.0, -1.0]), (0.5, [0.5, -0.5]), (None, [-2.0, -3.0])):
        transform = a_dlp(0.5, weight=0.1, max_weight=0.1, cap=cap)
        got, _, _ = step(transform, None, [30, 30], [1.0, 0.0])
        close(got, expected)


def test_hapo_by_hand():
    transform = hapo(3)
    # first meetings: nothing to compare with
    got, state, metrics = step(transform, None, [8, 12, 4], [1.0, 1.0, 0.0], rows=[1, 1, 1])
    close(got, [1.0, 1.0, 0.0])
    assert state.shortest_tokens.tolist() == [NO_HISTORY, 8, NO_HISTORY]
    assert float(metrics["length_history_ratio"]) == 0.0
    # then h = 8: cos(½π·n/8) is √½ at 4, 0 at 8, −√½ at 12 and −1 from 16 on
    root = math.sqrt(0.5)
    lengths, correct = [4, 8, 12, 16, 30] * 2, [1.0] * 5 + [0.0] * 5
    got, state, metrics = step(transform, state, lengths, correct, rows=[1] * 10)
    close(got, [1 + root, 1.0, 0.3, 0.3, 0.3, 0.0, 0.0, -root, -1.0, -1.0])
    assert state.shortest_tokens.tolist() == [NO_HISTORY, 4, NO_HISTORY]
    assert float(metrics["length_history_ratio"]) == 1.0


def test_hapo_weighs_length():
    state = hapo(1, weight=0.5).init()._replace(shortest_tokens=jnp.array([8], jnp.int32))
    got, _, _ = step(hapo(1, weight=0.5), state, [4, 30, 30], [1.0, 1.0, 0.0])
    close(got, [1 + 0.5 * math.sqrt(0.5), 0.65, -0.5])


def test_hapo_learns_from_correct_responses_that_count():
    transform = hapo(2)
    _, state, _ = step(
        transform, None, [9, 3, 2], [1.0, 0.0, 1.0], rows=[0, 0, 0], counted=[True, True, False]
    )
    assert state.shortest_tokens.tolist() == [9, NO_HISTORY]


def test_hapo_remembers_nothing_of_prompts_that_are_no_training_data():
    transform = hapo(2)
    state = transform.init()._replace(shortest_tokens=jnp.array([8, 8], jnp.int32))
    got, after, metrics = step(transform, state, [4, 4], [1.0, 1.0], rows=[UNSEEN, 0])
    close(got, [1.0, 1 + math.sqrt(0.5)])
    assert after.shortest_tokens.tolist() == [4, 8]  # and not the last prompt's, at −1
    assert float(metrics["length_history_ratio"]) == 0.5


@few
@given(
    st.lists(
        st.tuples(st.integers(1, 32), st.booleans(), st.integers(UNSEEN, 2)),
        min_size=12,
        max_size=12,
    )
)
def test_hapo_holds_the_shortest_of_each_prompt(responses):
    transform, state = hapo(3), None
    for start in range(0, 12, 4):
        lengths, correct, rows = zip(*responses[start : start + 4], strict=True)
        _, state, _ = step(transform, state, lengths, np.array(correct, float), rows=rows)
    for row in range(3):
        found = [n for n, correct, of in responses if correct and of == row]
        assert int(state.shortest_tokens[row]) == min(found, default=NO_HISTORY)


def test_hapo_needs_to_know_the_prompts():
    rollout = make_rollout([3])
    with pytest.raises(UserError, match='hapo: the prompts lack the column "row_index"'):
        hapo(1).apply(make_rewards(rollout, [1.0]), hapo(1).init(), rollout)


@pytest.mark.parametrize("make", [lambda: laser_d(32), lambda: a_dlp(0.5), lambda: hapo(3)])
def test_saved_and_restored_it_goes_on_as_it_was(make):
    """All that a method remembers is in its state; its numbers live in no closure."""
    batches = [(LENGTHS[i:], CORRECT[i:], GROUP[i:]) for i in (0, 3, 6)]
    state = None
    for batch in batches:
        through, state, _ = step(make(), state, *batch)
    saved = None
    for batch in batches[:2]:
        _, saved, _ = step(make(), saved, *batch)
    restored = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, saved))
    resumed, after, _ = step(make(), restored, *batches[2])
    np.testing.assert_array_equal(resumed, through)
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize(
    ("make", "keywords", "named"),
    [
        (laser_d, {"budget_tokens": 0}, "budget_tokens must be positive"),
        (laser_d, {"budget_tokens": 8, "alpha": 0.0}, "alpha must be positive"),
        (laser_d, {"budget_tokens": 8, "easy": 0.3}, "0 < medium < easy <= 1"),
        (laser_d, {"budget_tokens": 8, "easy": 1.1}, "0 < medium < easy <= 1"),
        (laser_d, {"budget_tokens": 8, "medium": 0.0}, "0 < medium < easy <= 1"),
        (laser_d, {"budget_tokens": 8, "decay": 1.0}, "0 <= decay < 1"),
        (laser_d, {"budget_tokens": 8, "decay": -0.1}, "0 <= decay < 1"),
        (a_dlp, {"target_accuracy": 1.1}, r"target_accuracy in \[0, 1\]"),
        (a_dlp, {"target_accuracy": -0.1}, r"target_accuracy in \[0, 1\]"),
        (a_dlp, {"target_accuracy": 0.5, "weight": 0.02}, "weight <= max_weight"),
        (a_dlp, {"target_accuracy": 0.5, "weight": 0.0}, "weight must be positive"),
        (a_dlp, {"target_accuracy": 0.5, "rate": 0.0}, "rate must be positive"),
        (a_dlp, {"target_accuracy": 0.5, "max_weight": -1.0}, "max_weight must be positive"),
        (a_dlp, {"target_accuracy": 0.5, "cap": 0.0}, "cap must be positive"),
        (hapo, {"train_prompts": 0}, "train_prompts must be positive"),
        (hapo, {"train_prompts": 1, "weight": 0.0}, "weight must lie in"),
        (hapo, {"train_prompts": 1, "weight": 1.5}, "weight must lie in"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, keywords, named):
    with pytest.raises(UserError, match=f"^{make.__name__}: .*{named}"):
        make(**keywords)
