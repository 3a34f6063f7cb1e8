"""Which responses are learned from, and that leaving some out is final."""

import jax
import jax.numpy as jnp
import numpy as np
from builders import few, make_rewards, make_rollout, pad_columns
from hypothesis import given
from hypothesis import strategies as st

from rljax.shaping import (
    chain,
    informative,
    informative_groups,
    kimi,
    length_band,
    length_metrics,
    overlong_filter,
)


def apply(transform, raw, group=None, *, lengths=None, truncated=None, counted=None):
    lengths = [3] * len(raw) if lengths is None else lengths
    group = np.arange(len(raw)) if group is None else np.asarray(group)
    rollout = make_rollout(lengths, group=group, truncated=truncated)
    rewards = make_rewards(rollout, raw)
    if counted is not None:
        rewards = rewards.replace(counted=jnp.asarray(counted))
    return transform.apply(rewards, transform.init(), rollout)


def test_overlong_filter_leaves_out_what_was_cut_off():
    truncated, counted = [True, False, True, False], [True, True, False, False]
    shaped, state, metrics = apply(
        overlong_filter(), [1.0] * 4, truncated=truncated, counted=counted
    )
    assert shaped.counted.tolist() == [False, True, False, False]
    assert shaped.response.tolist() == [1.0] * 4
    assert (state, metrics) == ((), {})


def test_trl_truncated_rows_in_the_statistics_of_their_group():
    """Kimi's longest is that of the responses that ended by themselves."""
    both = chain(filter=overlong_filter(), length=kimi())
    shaped, _, metrics = apply(
        both,
        [1.0, 1.0, 0.0],
        [0, 0, 0],
        lengths=[2, 4, 6],
        truncated=[False, False, True],
    )
    np.testing.assert_allclose(shaped.response[:2], [1.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(metrics["left_out_ratio"], 1 / 3, rtol=1e-6)


def test_informative_groups_by_hand():
    raw, group = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1, 2, 2]
    shaped, _, metrics = apply(informative_groups(), raw, group)
    assert shaped.counted.tolist() == [True, True, False, False, False, False]
    np.testing.assert_allclose(metrics["informative_ratio"], 1 / 3, rtol=1e-6)


def test_a_difference_that_does_not_count_is_none():
    counted = [True, True, False]
    shaped, _, metrics = apply(informative_groups(), [1.0, 1.0, 0.0], [0, 0, 0], counted=counted)
    assert shaped.counted.tolist() == [False] * 3
    assert float(metrics["informative_ratio"]) == 0.0
    # and what does not count stays out of a group that has something to teach
    shaped, _, metrics = apply(
        informative_groups(), [1.0, 0.0, 1.0], [0, 0, 0], counted=[True, True, False]
    )
    assert shaped.counted.tolist() == [True, True, False]
    assert float(metrics["informative_ratio"]) == 1.0  # of those that counted before


def test_nemo_rl_groups_filtered_on_the_shaped_reward():
    """Lengths tell two correct responses apart; there is still nothing to learn of them."""
    both = chain(length=length_band(1, 3, weight=0.3), filter=informative_groups())
    shaped, _, metrics = apply(both, [1.0, 1.0, 1.0, 0.0], [0, 0, 1, 1], lengths=[3, 6, 3, 6])
    assert shaped.response[0] != shaped.response[1]
    assert shaped.counted.tolist() == [False, False, True, True]
    assert shaped.raw.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert float(metrics["reward_mean"]) == 0.75  # the raw reward's, all the way to the log
    # and a shaped tie between a right and a wrong one hides nothing either
    tied = chain(length=length_band(1, 3, weight=1.0), filter=informative_groups())
    shaped, _, _ = apply(tied, [1.0, 0.0], [0, 0], lengths=[6, 3])
    assert shaped.response.tolist() == [0.0, 0.0]
    assert shaped.counted.tolist() == [True, True]


rows = st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 3), st.booleans())


@few
@given(st.lists(rows, min_size=8, max_size=8))
def test_informative_is_whether_the_group_holds_two_rewards(rows):
    raw, group, counted = (np.array(column) for column in zip(*rows, strict=True))
    got = informative(jnp.asarray(raw, jnp.float32), jnp.asarray(group), jnp.asarray(counted))
    for row, index in enumerate(group):
        assert bool(got[row]) == (len(set(raw[(group == index) & counted])) > 1)


def test_nothing_counts_and_all_stays_finite():
    both = chain(measure=length_metrics(1, 3), a=overlong_filter(), b=informative_groups())
    shaped, _, metrics = apply(both, [1.0, 0.0], [0, 0], counted=[False, False])
    assert not shaped.counted.any()
    assert float(metrics.pop("left_out_ratio")) == 1.0
    assert all(float(m) == 0.0 for m in metrics.values())


def test_padding_and_compilation_change_nothing():
    both = chain(a=overlong_filter(), b=informative_groups())
    rollout = make_rollout([3, 6, 2], group=np.array([0, 0, 0]), truncated=[False, True, False])
    rewards = make_rewards(rollout, [1.0, 0.0, 0.0])
    eager = both.apply(rewards, both.init(), rollout)
    compiled = jax.jit(both.apply)(rewards, both.init(), rollout)
    jax.tree.map(np.testing.assert_array_equal, compiled, eager)
    wide = rollout.replace(action_mask=pad_columns(rollout.action_mask, 1, 2, False))
    padded, _, _ = both.apply(rewards, both.init(), wide)
    assert padded.counted.tolist() == eager[0].counted.tolist() == [True, False, True]
