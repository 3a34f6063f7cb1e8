"""A penalty held to a share of the reward's magnitude."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.shaping.scale import bound_to_reward, init_magnitudes


def test_by_hand():
    penalty, raw = jnp.array([2.0, 0.0, 4.0]), jnp.array([1.0, -1.0, 1.0])
    # batch 1: magnitudes 1 and 2, so that the factor is 0.1·1/2
    bounded, state = bound_to_reward(penalty, raw, init_magnitudes(), share=0.1)
    np.testing.assert_allclose(bounded, [0.1, 0.0, 0.2], rtol=1e-6)
    # batch 2 earns nothing: 0.9·1 + 0 and 0.9·2 + 2, so that the factor is 0.1·0.9/3.8
    bounded, state = bound_to_reward(penalty, jnp.zeros(3), state, share=0.1)
    np.testing.assert_allclose(bounded, np.array([2.0, 0.0, 4.0]) * 0.09 / 3.8, rtol=1e-6)
    np.testing.assert_allclose([state.reward, state.penalty], [0.9, 3.8], rtol=1e-6)


def test_a_small_penalty_is_left_as_it_is():
    penalty = jnp.array([0.01, 0.05])
    bounded, _ = bound_to_reward(penalty, jnp.ones(2), init_magnitudes(), share=0.1)
    np.testing.assert_array_equal(bounded, penalty)


@pytest.mark.parametrize("size", [0.01, 1.0, 1000.0])
def test_over_time_the_mean_penalty_is_no_more_than_its_share(size):
    key_penalty, key_raw = jax.random.split(jax.random.key(0))
    penalties = size * jax.random.uniform(key_penalty, (200, 4)) ** 4
    raws = jax.random.uniform(key_raw, (200, 4), minval=-1.0)

    def batch(state, drawn):
        bounded, state = bound_to_reward(*drawn, state, share=0.1)
        return state, bounded

    _, bounded = jax.lax.scan(batch, init_magnitudes(), (penalties, raws))
    share = float(bounded.mean() / jnp.abs(raws).mean())
    if size < 0.1:
        np.testing.assert_array_equal(bounded, penalties)
    else:
        assert 0.08 < share < 0.102  # a running mean of ten batches: 2 % off, and not halved either


def test_nothing_earned_means_nothing_paid_and_nothing_to_pay_stays_finite():
    bounded, _ = bound_to_reward(jnp.ones(2), jnp.zeros(2), init_magnitudes(), share=0.1)
    assert not bounded.any()
    bounded, state = bound_to_reward(jnp.zeros(2), jnp.zeros(2), init_magnitudes(), share=0.1)
    assert not bounded.any()
    assert np.isfinite(state).all()


def test_compiled_equals_eager():
    drawn = jnp.array([2.0, 4.0]), jnp.array([1.0, 0.0]), init_magnitudes()
    eager = bound_to_reward(*drawn, share=0.1)
    compiled = jax.jit(lambda *x: bound_to_reward(*x, share=0.1))(*drawn)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), compiled, eager)
