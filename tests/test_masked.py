"""rljax.masked: equal to numpy over the selected entries, and 0 where nothing is selected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.masked import masked_mean, masked_sum, masked_var, masked_whiten

X = jnp.array([1.0, 9.0, 3.0, 5.0])
MASK = jnp.array([True, False, True, True])
REDUCTIONS = [masked_sum, masked_mean, masked_var, masked_whiten]


def test_by_hand():
    # over 1, 3, 5: sum 9, mean 3, squares 4 + 0 + 4 over n − 1 = 2
    assert float(masked_sum(X, MASK)) == 9.0
    assert float(masked_mean(X, MASK)) == 3.0
    assert float(masked_var(X, MASK)) == 4.0
    np.testing.assert_allclose(masked_whiten(X, MASK), [-1.0, 0.0, 0.0, 1.0], atol=1e-6)


def test_an_axis_is_reduced_row_by_row():
    x = jnp.array([[1.0, 3.0, 8.0], [2.0, 2.0, 2.0]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    assert masked_mean(x, mask, axis=-1).tolist() == [2.0, 0.0]
    assert masked_sum(x, mask, axis=-1).tolist() == [4.0, 0.0]


entries = st.lists(st.tuples(st.floats(-8, 8, width=32), st.booleans()), min_size=6, max_size=6)


@few
@given(entries)
def test_equal_to_numpy_over_the_selected_entries(entries):
    x = np.array([value for value, _ in entries], np.float32)
    mask = np.array([kept for _, kept in entries])
    chosen = x[mask].astype(np.float64)
    mean = chosen.mean() if chosen.size else 0.0
    var = chosen.var(ddof=1) if chosen.size > 1 else 0.0
    garbage = jnp.where(mask, x, jnp.nan)  # what lies outside must not matter
    np.testing.assert_allclose(masked_mean(garbage, jnp.asarray(mask)), mean, atol=1e-5)
    np.testing.assert_allclose(masked_var(garbage, jnp.asarray(mask)), var, rtol=1e-5, atol=1e-5)
    whitened = np.asarray(masked_whiten(garbage, jnp.asarray(mask)))
    assert not whitened[~mask].any()
    if var > 1e-3:
        np.testing.assert_allclose(
            whitened[mask], (chosen - mean) / np.sqrt(var + 1e-8), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_verl_nan_from_an_empty_mask(reduce):
    empty = jnp.zeros(4, bool)
    assert not np.any(reduce(X, empty))
    gradient = jax.grad(lambda x: reduce(x, empty).sum())(X)
    assert gradient.tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_compiled_equals_eager(reduce):
    np.testing.assert_allclose(jax.jit(reduce)(X, MASK), reduce(X, MASK), rtol=1e-6, atol=1e-7)


def test_gradient_of_the_mean_is_one_nth_inside_and_zero_outside():
    gradient = jax.grad(masked_mean)(X, MASK)
    np.testing.assert_allclose(gradient, [1 / 3, 0.0, 1 / 3, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("garbage", [jnp.nan, jnp.inf])
def test_gradients_stay_finite_with_garbage_outside_the_mask(reduce, garbage):
    """0 · NaN is NaN: a where that comes after the arithmetic hides it forwards only."""
    weights = jnp.array([0.3, 0.7, 2.0, 0.5])  # whitened entries add up to 0, and say nothing

    def loss(x):
        return (reduce(x, MASK) * weights).sum()

    gradient = jax.grad(loss)(jnp.where(MASK, X, garbage))
    assert float(gradient[1]) == 0.0
    np.testing.assert_array_equal(gradient, jax.grad(loss)(X))
    assert gradient[MASK].any()


def test_a_single_entry_has_no_variance():
    one = jnp.array([False, True, False, False])
    assert float(masked_var(X, one)) == 0.0
    assert masked_whiten(X, one).tolist() == [0.0, 0.0, 0.0, 0.0]
