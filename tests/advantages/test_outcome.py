"""Advantages without a critic: by hand, and under everything that must not change them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few, make_rewards, make_rollout, pad_columns
from hypothesis import given
from hypothesis import strategies as st

from rljax.advantages import (
    gpg,
    group_relative,
    opo,
    pass_at_k,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    remax,
    rloo,
)

# Two groups whose rows alternate: R = 1, 0, 0.5 of lengths 1, 3, 2; and 2, 2, −1 of 2, 1, 4.
# μ = 0.5 and 1; σ = 0.5 and √3; over all six μ = 0.75 and σ = √1.375.
LENGTHS, GROUP, RAW = [1, 2, 3, 1, 2, 4], [0, 1, 0, 1, 0, 1], [1.0, 2.0, 0.0, 2.0, 0.5, -1.0]
CENTRED = np.array([0.5, 1.0, -0.5, 1.0, 0.0, -2.0])

GROUPED = {
    "group": group_relative,
    "batch": partial(group_relative, scale="batch"),
    "none": partial(group_relative, scale="none"),
    "rloo": rloo,
    "opo": opo,
    "gpg": gpg,
    "pass_at_k": pass_at_k,
    "pass_at_k_scaled": partial(pass_at_k, scale=True),
    "baseline": reinforce_plus_plus_baseline,
}
ESTIMATES = GROUPED | {
    "reinforce_plus_plus": partial(reinforce_plus_plus, gamma=0.9),
    "remax": partial(remax, gamma=0.9),
}
every_estimate = pytest.mark.parametrize("name", ESTIMATES)
every_grouped = pytest.mark.parametrize("name", GROUPED)


def example(raw=RAW, lengths=LENGTHS, group=GROUP, greedy=None):
    rollout = make_rollout(lengths, group=group, greedy=greedy or [False] * len(lengths))
    return make_rewards(rollout, raw), rollout


def of_responses(advantages, rollout):
    """The number that stands on each of a response's tokens; there must be one alone."""
    advantages, mask = np.asarray(advantages), np.asarray(rollout.action_mask)
    assert not advantages[~mask].any()
    for row, kept in zip(advantages, mask, strict=True):
        assert len(set(row[kept].tolist())) == 1
    return np.array([row[kept][0] for row, kept in zip(advantages, mask, strict=True)])


def whitened(per_response, lengths=LENGTHS):
    """Over tokens, with Bessel's correction."""
    tokens = np.repeat(per_response, lengths)
    return (per_response - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("group", [1.0, 3**-0.5, -1.0, 3**-0.5, 0.0, -2 * 3**-0.5]),
        ("batch", CENTRED / 1.172604),
        ("none", CENTRED),
        ("rloo", 1.5 * CENTRED),  # 1 − (0 + 0.5)/2 = 0.75 for the first
        ("opo", [2 / 3, 12 / 7, -1 / 3, 12 / 7, 1 / 6, -9 / 7]),  # baselines 2/6 and 2/7
        ("gpg", 1.2 * CENTRED),  # five of six have R ≠ 0
        ("pass_at_k", [0.5, 0.0, 0.0, 0.0, 0.0, 0.0]),  # two share the best of the other group
        ("pass_at_k_scaled", [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ("baseline", whitened(CENTRED)),
    ],
)
def test_by_hand(name, expected):
    rewards, rollout = example()
    advantages, returns = ESTIMATES[name](rewards, rollout)
    assert returns is None
    np.testing.assert_allclose(of_responses(advantages, rollout), expected, rtol=1e-5, atol=1e-6)


def test_rloo_is_the_reward_less_the_mean_of_the_others():
    rewards, rollout = example()
    raw, group = np.array(RAW), np.array(GROUP)
    others = [raw[(group == group[i]) & (np.arange(6) != i)].mean() for i in range(6)]
    advantages, _ = rloo(rewards, rollout)
    np.testing.assert_allclose(of_responses(advantages, rollout), raw - others, atol=1e-6)


def test_group_relative_eps_is_added_to_the_deviation():
    rewards, rollout = example()
    advantages, _ = group_relative(rewards, rollout, eps=0.5)
    np.testing.assert_allclose(advantages[0, 2], 0.5, rtol=1e-6)  # 0.5 / (0.5 + 0.5)


def test_pass_at_k_scaled_divides_by_the_deviation_and_names_one_winner():
    rewards, rollout = example([3.0, 5.0, 0.0, 9.0, 0.0, 5.0])
    advantages, _ = pass_at_k(rewards, rollout, scale=True)
    # 3 of 3, 0, 0 over σ = √3; 9 − 5 of 5, 9, 5 over σ = √(16/3)
    expected = [3**0.5, 0.0, 0.0, 3**0.5, 0.0, 0.0]
    np.testing.assert_allclose(of_responses(advantages, rollout), expected, rtol=1e-5)


def test_reinforce_plus_plus_by_hand():
    """γ = 0.5: 0.5, 1 and 4 are to go; their mean is 11/6, their variance 43/12."""
    rewards, rollout = example([1.0, 4.0], [2, 1], [0, 1])
    advantages, returns = reinforce_plus_plus(rewards, rollout, gamma=0.5)
    expected = (np.array([0.5, 1.0, 4.0]) - 11 / 6) / np.sqrt(43 / 12)
    np.testing.assert_allclose(advantages[rollout.action_mask], expected, rtol=1e-5)
    assert not advantages[~rollout.action_mask].any()
    assert returns is None


def test_undiscounted_reinforce_plus_plus_is_the_whitened_reward():
    rewards, rollout = example()
    advantages, _ = reinforce_plus_plus(rewards, rollout)
    np.testing.assert_allclose(
        of_responses(advantages, rollout), whitened(np.array(RAW)), rtol=1e-5
    )


# Each group with its greedy row in another place: baselines 0.5 and −1.
GREEDY = [False, False, False, False, True, True]


def test_remax_by_hand():
    rewards, rollout = example(greedy=GREEDY)
    advantages, returns = remax(rewards, rollout)
    expected = [1.0 - 0.5, 2.0 + 1, 0.0 - 0.5, 2.0 + 1, 0.0, 0.0]
    np.testing.assert_allclose(of_responses(advantages, rollout), expected, rtol=1e-6)
    assert returns is None


def test_remax_discounts_what_is_to_go_and_not_the_baseline():
    rewards, rollout = example(greedy=GREEDY)
    advantages, _ = remax(rewards, rollout, gamma=0.5)
    assert advantages[1, 2:4].tolist() == [1.0 + 1, 2.0 + 1]


def test_the_greedy_response_itself_gets_nothing_and_sets_no_statistics():
    """All estimates but ReMax are as they would be without it."""
    rewards, rollout = example([1.0, 2.0, 0.0, 2.0, 77.0, -99.0], greedy=GREEDY)
    four = example(RAW[:4], LENGTHS[:4], GROUP[:4])
    for name, estimate in ESTIMATES.items():
        advantages, _ = estimate(rewards, rollout)
        assert not advantages[4:].any()
        if name != "remax":
            np.testing.assert_allclose(advantages[:4], estimate(*four)[0], rtol=1e-5, atol=1e-6)


def test_the_greedy_baseline_is_the_response_s_reward_without_its_tokens():
    rewards, rollout = example(greedy=GREEDY)
    priced = rewards.replace(token=jnp.where(rollout.greedy[:, None], -1.0, rewards.token))
    np.testing.assert_array_equal(remax(priced, rollout)[0], remax(rewards, rollout)[0])


@pytest.mark.parametrize("name", sorted(set(ESTIMATES) - {"reinforce_plus_plus", "remax"}))
def test_rewards_of_tokens_are_part_of_what_a_response_earned(name):
    rewards, rollout = example()
    tokens = jnp.where(rollout.action_mask, 0.25, 0.0)
    priced = rewards.replace(token=tokens, response=rewards.response - tokens.sum(axis=-1))
    np.testing.assert_allclose(
        ESTIMATES[name](priced, rollout)[0], ESTIMATES[name](rewards, rollout)[0], atol=1e-6
    )


@every_estimate
@pytest.mark.parametrize("left_out_reward", [0.0, 2.0, 1000.0, np.nan])
def test_trl_truncated_responses_were_masked_from_the_loss_and_still_in_the_statistics(
    name, left_out_reward
):
    """A response that does not count gets 0, and the others what they would without it."""
    rewards, rollout = example([1.0, left_out_reward, 0.0, 2.0, 0.5, -1.0])
    counted = jnp.array([True, False, True, True, True, True])
    advantages, _ = ESTIMATES[name](rewards.replace(counted=counted), rollout)
    kept = np.flatnonzero(counted)
    expected, _ = ESTIMATES[name](*example(*(np.take(x, kept) for x in (RAW, LENGTHS, GROUP))))
    np.testing.assert_allclose(advantages[kept], expected, rtol=1e-5, atol=1e-6)
    assert not advantages[1].any()


@every_estimate
@few
@given(order=st.permutations(range(6)))
def test_permuting_rows_permutes_the_result(name, order):
    rewards, rollout = example([1.0, 2.0, 0.0, 3.0, 0.5, -1.0], greedy=GREEDY)
    order = jnp.array(order)
    shuffled = jax.tree.map(lambda x: x[order], (rewards, rollout))
    advantages, _ = ESTIMATES[name](rewards, rollout)
    np.testing.assert_allclose(
        ESTIMATES[name](*shuffled)[0], advantages[order], rtol=1e-5, atol=1e-6
    )


@every_estimate
def test_the_names_of_groups_do_not_matter(name):
    rewards, rollout = example(greedy=GREEDY)
    renamed = rollout.replace(group=5 - 3 * rollout.group)
    np.testing.assert_array_equal(
        ESTIMATES[name](rewards, renamed)[0], ESTIMATES[name](rewards, rollout)[0]
    )


@every_estimate
def test_padding_columns_change_nothing(name):
    rewards, rollout = example(greedy=GREEDY)
    mask = pad_columns(rollout.action_mask, 3, 2)
    wide = rollout.replace(action_mask=mask), rewards.replace(token=jnp.zeros(mask.shape))
    padded, _ = ESTIMATES[name](*reversed(wide))
    plain, _ = ESTIMATES[name](rewards, rollout)
    np.testing.assert_allclose(padded, pad_columns(plain, 3, 2), rtol=1e-6)


tenths = st.lists(st.integers(-20, 20).map(lambda n: n / 10), min_size=6, max_size=6)


@pytest.mark.parametrize("name", sorted(set(GROUPED) - {"gpg"}))  # which counts R ≠ 0
@few
@given(tenths, st.sampled_from([1.0, -3.7, 1000.0]))
def test_a_constant_added_to_all_rewards_changes_nothing(name, raw, constant):
    """Rewards near 1000 are rounded by 3e-5, of a deviation of 0.05 or more."""
    rewards, rollout = example(raw)
    shifted, _ = example([r + constant for r in raw])
    np.testing.assert_allclose(
        ESTIMATES[name](shifted, rollout)[0], ESTIMATES[name](rewards, rollout)[0], atol=5e-3
    )


@every_grouped
@pytest.mark.parametrize("reward", [0.1, 1000.1])
@pytest.mark.parametrize("size", [3, 8, 64])
def test_equal_rewards_give_exactly_0_and_not_rounding_over_epsilon(name, reward, size):
    lengths = [1 + i % 4 for i in range(2 * size)]
    rewards, rollout = example([reward] * 2 * size, lengths, [i % 2 for i in range(2 * size)])
    advantages, _ = ESTIMATES[name](rewards, rollout)
    assert float(jnp.abs(advantages).max()) == 0.0


@every_grouped
def test_a_response_alone_in_its_group_gets_0(name):
    rewards, rollout = example(group=[0, 1, 2, 3, 4, 0])
    advantages, _ = ESTIMATES[name](rewards, rollout)
    assert not advantages[1:5].any()
    assert advantages[jnp.array([0, 5])].any()


@every_grouped
def test_a_response_left_alone_by_those_that_do_not_count_gets_0(name):
    rewards, rollout = example()
    counted = jnp.array([True, True, False, True, False, True])  # of group 0 the first alone
    advantages, _ = ESTIMATES[name](rewards.replace(counted=counted), rollout)
    assert not advantages[jnp.array([0, 2, 4])].any()


@every_estimate
def test_a_batch_in_which_nothing_counts_is_0(name):
    rewards, rollout = example(greedy=GREEDY)
    nothing = rewards.replace(counted=jnp.zeros(6, bool))
    assert not ESTIMATES[name](nothing, rollout)[0].any()  # nor NaN, which is true
    rewards, rollout = example(lengths=[0] * 6, greedy=GREEDY)
    assert not ESTIMATES[name](rewards, rollout)[0].any()


@every_estimate
def test_compiled_equals_eager(name):
    rewards, rollout = example(greedy=GREEDY)
    eager, _ = ESTIMATES[name](rewards, rollout)
    compiled, _ = jax.jit(ESTIMATES[name])(rewards, rollout)
    np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-6)


@every_estimate
def test_a_better_response_gets_no_less(name):
    """The sign: among responses of one length and one group, in the order of their rewards."""
    rewards, rollout = example([0.25, 1.0, 0.5], [2, 2, 2], [0, 0, 0])
    first, best, middle = ESTIMATES[name](rewards, rollout)[0][:, 3]
    assert first <= middle <= best
    assert first < best
