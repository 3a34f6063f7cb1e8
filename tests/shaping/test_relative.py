"""Length against the group: the published numbers, equal to NumPy over any group."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout
from hypothesis import given
from hypothesis import strategies as st

from rljax.errors import UserError
from rljax.shaping import alp, arora_zanette, drpo, grpo_lead, kimi, shorter_better


def worth(transform, lengths, correct, group=None, counted=None):
    """What each response is worth, with a single reward of 0 or 1; one group by default."""
    group = [0] * len(lengths) if group is None else group
    rollout = make_rollout(lengths, budget=max(400, *lengths), group=np.asarray(group))
    rewards = make_rewards(rollout, correct)
    if counted is not None:
        rewards = rewards.replace(counted=jnp.asarray(counted))
    shaped, state, _ = transform.apply(rewards, transform.init(), rollout)
    assert state == ()
    return np.asarray(shaped.response)


def close(got, expected, **tolerance):
    np.testing.assert_allclose(got, expected, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def test_kimi_by_hand():
    # from 2 to 6 λ goes from ½ to −½, for the wrong only where it costs
    got = worth(kimi(), [2, 3, 6, 2, 4, 6], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    close(got, [1.5, 1.25, 0.5, 0.0, 0.0, -0.5])
    close(worth(kimi(weight=0.5), [2, 6, 6], [1.0, 1.0, 0.0]), [1.25, 0.75, -0.25])


def test_kimi_of_equal_lengths_is_the_correctness():
    close(worth(kimi(), [4, 4, 4], [1.0, 0.0, 1.0]), [1.0, 0.0, 1.0])
    # one that does not count and is longer changes that as little
    close(worth(kimi(), [4, 4, 9], [1.0, 0.0, 1.0], counted=[True, True, False]), [1.0, 0.0, 1.0])


def test_open_r1_kimi_over_the_batch_instead_of_the_group():
    got = worth(kimi(), [2, 4, 20, 60], [1.0] * 4, group=[0, 0, 1, 1])
    close(got, [1.5, 0.5, 1.5, 0.5])


def test_kimi_bounds_one_that_is_beyond_those_that_count():
    counted = [True, True, False, False]
    close(worth(kimi(), [4, 6, 40, 1], [1.0] * 4, counted=counted), [1.5, 0.5, 0.5, 1.5])


def test_arora_zanette_by_hand():
    # correct lengths 2 and 6: μ 4, σ 2 without Bessel's correction; σ(±1) = 0.731059, 0.268941
    got = worth(arora_zanette(alpha=0.5), [2, 6, 50, 4], [1.0, 1.0, 0.0, 0.0])
    close(got, [1 - 0.5 * 0.268941, 1 - 0.5 * 0.731059, 0.0, 0.0])


def test_arora_zanette_without_spread_takes_half_of_alpha():
    close(worth(arora_zanette(), [5, 5, 9], [1.0, 1.0, 0.0]), [0.95, 0.95, 0.0])
    close(worth(arora_zanette(), [5, 9], [1.0, 0.0]), [0.95, 0.0])


def test_alp_by_hand():
    # ¾ correct: 0.01·¾ a token; then none of two: 0.01·½
    lengths, correct = [10, 20, 40, 40, 10, 20], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    got = worth(alp(beta=0.01), lengths, correct, group=[0, 0, 0, 0, 1, 1])
    close(got, [1 - 0.075, 1 - 0.15, 1 - 0.3, -0.3, -0.05, -0.1])


def test_alp_is_capped_where_the_paper_is_not():
    close(worth(alp(beta=0.1), [30, 2], [1.0, 1.0]), [0.0, 0.8])
    close(worth(alp(beta=0.1, cap=0.5), [30, 2], [1.0, 1.0]), [0.5, 0.8])
    close(worth(alp(beta=0.1, cap=None), [30, 2], [1.0, 1.0]), [-2.0, 0.8])


def test_alp_measures_success_over_those_that_count():
    counted = [True, True, True, True, False, False]
    got = worth(alp(beta=0.01), [10] * 6, [1.0, 1.0, 1.0, 0.0, 0.0, 0.0], counted=counted)
    close(got, [1 - 0.075] * 3 + [-0.075] * 3)


def test_grpo_lead_by_hand():
    # correct lengths 2, 4, 6: μ 4, σ 2 with Bessel's correction
    got = worth(grpo_lead(), [2, 4, 6, 60], [1.0, 1.0, 1.0, 0.0])
    close(got, [math.exp(0.05), 1.0, math.exp(-0.05), 0.0])
    close(worth(grpo_lead(alpha=1.0), [2, 4, 6], [1.0] * 3), [math.e, 1.0, 1 / math.e])


def test_grpo_lead_of_one_or_of_equals_is_the_correctness():
    close(worth(grpo_lead(), [7, 3], [1.0, 0.0]), [1.0, 0.0])
    close(worth(grpo_lead(), [7, 7], [1.0, 1.0]), [1.0, 1.0])


def test_grpo_lead_stays_bounded_for_one_that_does_not_count():
    """Nothing of its own group's statistics holds such a row, as ReMax's greedy one, near them."""
    counted = [True, True, False, False]
    lengths, correct = [4, 5, 5000, 1], [1.0, 1.0, 1.0, 1.0]
    got = worth(grpo_lead(alpha=1.0), lengths, correct, counted=counted)
    bound = math.exp(math.sqrt(2))
    close(got[2:], [1 / bound, bound])
    # where none that counts is correct there is nothing to compare with
    close(worth(grpo_lead(), [4, 900], [0.0, 1.0], counted=[True, False]), [0.0, 1.0])


def test_shorter_better_by_hand():
    transform = shorter_better(beta=0.1)
    # the shortest correct one has 4 tokens; in the other group none is correct: the mean is 5
    lengths, correct = [4, 6, 2, 4, 6], [1.0, 1.0, 0.0, 0.0, 0.0]
    got = worth(transform, lengths, correct, group=[0, 0, 0, 1, 1])
    close(got, [2.0, 1.8, -0.2, -0.1, -0.1])
    close(worth(shorter_better(alpha=1.5), [4, 504], [1.0, 1.0]), [1.5, 1.0])


def test_shorter_better_is_capped_where_the_paper_is_not():
    lengths, correct = [4, 34, 34], [1.0, 1.0, 0.0]
    close(worth(shorter_better(beta=0.1), lengths, correct), [2.0, 1.0, -1.0])
    close(worth(shorter_better(beta=0.1, cap=0.5), lengths, correct), [2.0, 1.5, -0.5])
    close(worth(shorter_better(beta=0.1, cap=None), lengths, correct), [2.0, -1.0, -3.0])


def test_drpo_by_hand():
    # exp(−(n/L)/λ) for 2 and 4 of 8 at λ = ¼ / ln 3 is 1 to ⅓: weights of 1.5 and 0.5
    transform = drpo(8, temperature=0.25 / math.log(3))
    close(worth(transform, [2, 4, 1], [1.0, 1.0, 0.0]), [1.5, 0.5, 0.0])
    close(worth(transform, [2, 2, 6], [1.0, 1.0, 0.0]), [1.0, 1.0, 0.0])


def test_drpo_of_one_that_does_not_count():
    transform = drpo(8, temperature=0.25 / math.log(3))
    counted = [True, True, False, False]
    got = worth(transform, [2, 4, 1, 6], [1.0] * 4, counted=counted)
    close(got, [1.5, 0.5, 1.5, 0.5 / 3])  # none is worth more than the shortest that counts
    close(worth(transform, [3, 5], [0.0, 1.0], counted=[True, False]), [0.0, 1.0])


@few
@given(st.lists(st.integers(1, 400), min_size=6, max_size=6))
def test_drpo_moves_reward_among_the_correct_alone(lengths):
    got = worth(drpo(400), lengths, [1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(got.sum(), 4.0, rtol=1e-5)
    order = np.argsort(np.array(lengths)[[0, 1, 3, 4]], kind="stable")
    assert (np.diff(got[[0, 1, 3, 4]][order]) <= 1e-6).all()


# The papers' formulas once more, for one group of responses that count: (n, C) -> worth.
def arora_formula(n, c):
    z = (n - n[c].mean()) / n[c].std() if n[c].std() > 0 else 0 * n
    return c * (1 - 0.1 / (1 + np.exp(-z)))


def lead_formula(n, c):
    std = n[c].std(ddof=1) if c.sum() > 1 else 0.0
    return c * np.exp(-0.05 * (n - n[c].mean()) / (std + 1e-6)) if std > 0 else 1.0 * c


def kimi_formula(n, c):
    spread = n.max() - n.min()
    gain = 0.5 - (n - n.min()) / spread if spread else 0 * n
    return np.where(c, 1 + gain, np.minimum(gain, 0))


def shorter_formula(n, c):
    best = n[c].min() if c.any() else n.mean()
    return 2 * c - np.minimum(0.001 * np.abs(n - best), 1.0)


FORMULAS = {
    "kimi": (kimi(), kimi_formula),
    "arora_zanette": (arora_zanette(), arora_formula),
    "alp": (alp(), lambda n, c: c - np.minimum(1e-4 * max(c.mean(), 1 / len(c)) * n, 1.0)),
    "grpo_lead": (grpo_lead(), lead_formula),
    "shorter_better": (shorter_better(), shorter_formula),
    "drpo": (drpo(400), lambda n, c: c * np.exp(-n / 40) / np.exp(-n[c] / 40).mean()),
}
rows = st.tuples(st.integers(1, 400), st.booleans(), st.integers(0, 2), st.booleans())


@pytest.mark.parametrize("name", FORMULAS)
@few
@given(st.lists(rows, min_size=8, max_size=8))
def test_equal_to_numpy_over_any_groups(name, rows):
    transform, formula = FORMULAS[name]
    lengths, correct, group, counted = (np.array(column) for column in zip(*rows, strict=True))
    got = worth(transform, lengths, correct.astype(float), group, counted)
    for index in set(group[counted]):
        members = (group == index) & counted
        n, c = lengths[members].astype(float), correct[members]
        if c.any() or name not in ("arora_zanette", "grpo_lead", "drpo"):
            close(got[members], formula(n, c), rtol=1e-4, atol=1e-5)
        else:
            close(got[members], 0.0)


@pytest.mark.parametrize(
    ("make", "keywords", "named"),
    [
        (kimi, {"weight": 0.0}, "weight must lie between 0 and 2; got 0"),
        (kimi, {"weight": 2.0}, "weight must lie between 0 and 2"),
        (arora_zanette, {"alpha": 0.0}, "alpha must lie between 0 and 1"),
        (arora_zanette, {"alpha": 1.0}, "alpha must lie between 0 and 1"),
        (alp, {"beta": 0.0}, "beta must be positive"),
        (alp, {"cap": 0.0}, "cap must be positive"),
        (grpo_lead, {"alpha": 0.0}, "alpha must lie in"),
        (grpo_lead, {"alpha": 1.5}, "alpha must lie in"),
        (shorter_better, {"alpha": 0.0}, "alpha must be positive"),
        (shorter_better, {"beta": -1.0}, "beta must be positive"),
        (shorter_better, {"cap": 0.0}, "cap must be positive"),
        (drpo, {"budget_tokens": 0}, "budget_tokens must be positive"),
        (drpo, {"budget_tokens": 8, "temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, keywords, named):
    with pytest.raises(UserError, match=f"^{make.__name__}: .*{named}"):
        make(**keywords)
