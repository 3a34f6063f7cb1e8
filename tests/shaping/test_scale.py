"""A penalty held, in every batch, to a share of the reward's running magnitude."""

import jax
import jax.numpy as jnp
import numpy as np
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.shaping.scale import bound_to_reward, init_scale


def bound(penalty, raw, state, **keywords):
    return bound_to_reward(penalty, raw, jnp.ones(raw.shape, bool), state, **keywords)


PENALTY = jnp.array([2.0, 0.0, 4.0])  # of mean 2


def test_by_hand():
    # batch 1 earns 1 in magnitude: a mean of 2 is brought down to 0.1·1
    raw = jnp.array([1.0, -1.0, 1.0])
    bounded, state = bound(PENALTY, raw, init_scale(), share=0.1)
    np.testing.assert_allclose(bounded, [0.1, 0.0, 0.2], rtol=1e-6)
    np.testing.assert_allclose(state, (1.0, 1.0), rtol=1e-6)
    # batch 2 earns nothing: (0.9·1 + 0) / (0.9 + 1)
    bounded, state = bound(PENALTY, jnp.zeros(3), state, share=0.1)
    np.testing.assert_allclose(bounded, PENALTY * 0.1 * (0.9 / 1.9) / 2, rtol=1e-6)
    np.testing.assert_allclose(state, (0.9, 1.9), rtol=1e-6)
    # batch 3 earns 2: (0.9·0.9 + 2) / (0.9·1.9 + 1)
    bounded, state = bound(PENALTY, 2.0 * raw, state, share=0.1)
    np.testing.assert_allclose(bounded, PENALTY * 0.1 * (2.81 / 2.71) / 2, rtol=1e-6)
    np.testing.assert_allclose(state, (2.81, 2.71), rtol=1e-6)


def test_decay_0_forgets_all_but_this_batch():
    _, state = bound(PENALTY, jnp.full(3, 9.0), init_scale(), share=0.1, decay=0.0)
    bounded, _ = bound(PENALTY, jnp.ones(3), state, share=0.1, decay=0.0)
    np.testing.assert_allclose(bounded, PENALTY * 0.1 / 2, rtol=1e-6)


def test_a_small_penalty_is_left_as_it_is():
    penalty = jnp.array([0.01, 0.05])
    bounded, _ = bound(penalty, jnp.ones(2), init_scale(), share=0.1)
    np.testing.assert_array_equal(bounded, penalty)


def test_a_small_batch_saves_nothing_for_a_large_one():
    """The bound is on every batch, and not on an average over them."""
    state = init_scale()
    for _ in range(20):
        _, state = bound(jnp.zeros(3), jnp.ones(3), state, share=0.1)
    bounded, _ = bound(PENALTY, jnp.ones(3), state, share=0.1)
    np.testing.assert_allclose(bounded.mean(), 0.1, rtol=1e-6)


def test_a_large_batch_is_not_held_against_the_next():
    state = init_scale()
    _, state = bound(1000.0 * PENALTY, jnp.ones(3), state, share=0.1)
    penalty = jnp.array([0.01, 0.0, 0.2])
    bounded, _ = bound(penalty, jnp.ones(3), state, share=0.1)
    np.testing.assert_array_equal(bounded, penalty)


def test_what_does_not_count_has_no_part_in_it():
    counted = jnp.array([True, True, False])
    raw = jnp.array([1.0, 1.0, 50.0])
    bounded, state = bound_to_reward(PENALTY, raw, counted, init_scale(), share=0.1)
    # a mean of 1 over the first two is brought down to 0.1; the third goes with them
    np.testing.assert_allclose(bounded, [0.2, 0.0, 0.4], rtol=1e-6)
    np.testing.assert_allclose(state, (1.0, 1.0), rtol=1e-6)


numbers = st.floats(0, 1000, width=32)
batches = st.lists(st.tuples(numbers, numbers, st.floats(-4, 4, width=32)), min_size=8, max_size=8)
jitted = jax.jit(lambda *args: bound(*args, share=0.1))


@few
@given(batches)
def test_no_batch_exceeds_its_share_and_none_is_cut_more_than_needed(batches):
    state, magnitudes = init_scale(), []
    for one, other, raw in batches:
        penalty = np.array([one, other], np.float32)
        magnitudes.append(abs(raw) / 2)
        bounded, state = jitted(penalty, np.array([raw, 0.0], np.float32), state)
        weights = 0.9 ** np.arange(len(magnitudes))[::-1]
        bound = 0.1 * np.average(magnitudes, weights=weights)
        assert bounded.mean() <= bound * (1 + 1e-5)
        expected = penalty * min(1.0, bound / max(penalty.mean(), 1e-8))
        np.testing.assert_allclose(bounded, expected, rtol=1e-4, atol=1e-7)


def test_nothing_earned_means_nothing_paid_and_nothing_to_pay_stays_finite():
    bounded, _ = bound(jnp.ones(2), jnp.zeros(2), init_scale(), share=0.1)
    assert not bounded.any()
    bounded, state = bound(jnp.zeros(2), jnp.zeros(2), init_scale(), share=0.1)
    assert not bounded.any()
    assert np.isfinite(state).all()


def test_compiled_equals_eager():
    drawn = jnp.array([2.0, 4.0]), jnp.array([1.0, 0.0]), init_scale()
    eager = bound(*drawn, share=0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), jitted(*drawn), eager)


def test_a_batch_in_which_nothing_counts_tells_nothing_of_the_scale():
    raw, nobody = jnp.full(3, 9.0), jnp.zeros(3, bool)
    bounded, state = bound_to_reward(PENALTY, raw, nobody, init_scale(), share=0.1)
    assert bounded.tolist() == [0.0, 0.0, 0.0]
    assert state == init_scale()
    _, known = bound(PENALTY, raw, init_scale(), share=0.1)
    _, state = bound_to_reward(PENALTY, 5.0 * raw, nobody, known, share=0.1)
    assert state == known
