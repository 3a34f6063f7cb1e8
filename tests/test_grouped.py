"""Group statistics: equal to NumPy over the rows that count, wherever in the batch they stand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.grouped import group_count, group_max, group_mean, group_min, group_std, group_sum

STATISTICS = {
    group_sum: np.sum,
    group_mean: np.mean,
    group_std: lambda x: np.std(x, ddof=1) if len(x) > 1 else 0.0,
    group_max: np.max,
    group_min: np.min,
}

# group 2 holds 1 and 8, and a row that does not count; group 0 holds 3 and 5
X = jnp.array([1.0, 3.0, 8.0, 100.0, 5.0])
GROUP = jnp.array([2, 0, 2, 2, 0])
MASK = jnp.array([True, True, True, False, True])


@pytest.mark.parametrize(
    ("statistic", "of_2", "of_0"),
    [
        (group_sum, 9.0, 8.0),
        (group_mean, 4.5, 4.0),
        (group_std, 4.949747, 1.414214),  # √24.5 and √2
        (group_max, 8.0, 5.0),
        (group_min, 1.0, 3.0),
    ],
)
def test_by_hand(statistic, of_2, of_0):
    """Every row has its group's number, the one that does not count too."""
    expected = [of_2, of_0, of_2, of_2, of_0]
    np.testing.assert_allclose(statistic(X, GROUP, MASK), expected, rtol=1e-6)


def test_count_by_hand():
    assert group_count(GROUP, MASK).tolist() == [2.0] * 5
    assert group_count(GROUP, ~MASK).tolist() == [1.0, 0.0, 1.0, 1.0, 0.0]


rows = st.tuples(st.floats(-8, 8, width=16), st.integers(0, 6), st.booleans())


@pytest.mark.parametrize("statistic", STATISTICS)
@few
@given(st.lists(rows, min_size=7, max_size=7))
def test_equal_to_numpy_over_any_groups(statistic, rows):
    x, group, mask = (np.array(column) for column in zip(*rows, strict=True))
    got = statistic(jnp.asarray(x, jnp.float32), jnp.asarray(group), jnp.asarray(mask))
    for row, index in enumerate(group):
        members = x[(group == index) & mask]
        expected = STATISTICS[statistic](members) if len(members) else 0.0
        np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("statistic", STATISTICS)
@few
@given(st.permutations(range(5)))
def test_permuting_rows_permutes_the_result(statistic, order):
    order = jnp.array(order)
    np.testing.assert_allclose(
        statistic(X[order], GROUP[order], MASK[order]),
        statistic(X, GROUP, MASK)[order],
        rtol=1e-6,
    )


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf, 1e30])
def test_rows_that_do_not_count_may_hold_anything(statistic, outside):
    changed = statistic(jnp.where(MASK, X, outside), GROUP, MASK)
    np.testing.assert_array_equal(changed, statistic(X, GROUP, MASK))


@pytest.mark.parametrize("statistic", STATISTICS)
def test_an_empty_mask_gives_0(statistic):
    assert not statistic(X, GROUP, jnp.zeros(5, bool)).any()  # nor NaN, which is true


@pytest.mark.parametrize("statistic", STATISTICS)
def test_compiled_equals_eager(statistic):
    compiled = jax.jit(statistic)(X, GROUP, MASK)
    np.testing.assert_allclose(compiled, statistic(X, GROUP, MASK), rtol=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.7, -300.3, 1000.1])
@pytest.mark.parametrize("size", [3, 8, 64, 1024])
def test_alike_values_have_exactly_their_mean_and_no_deviation(value, size):
    """The sum of 1024 times 1000.1 is off by rounding: by 10 in all, 0.01 in the mean."""
    x, group, mask = jnp.full(size, value), jnp.zeros(size, jnp.int32), jnp.ones(size, bool)
    assert not (x - group_mean(x, group, mask)).any()
    assert not group_std(x, group, mask).any()


def test_values_apart_by_rounding_have_no_deviation():
    x = jnp.array([1000.1, np.nextafter(np.float32(1000.1), np.float32(2000))])
    both = jnp.zeros(2, jnp.int32), jnp.ones(2, bool)
    assert x[0] != x[1]
    assert not group_std(x, *both).any()


@pytest.mark.parametrize("constant", [0.0, 1000.0])
def test_a_large_constant_hides_no_deviation(constant):
    x = jnp.array([0.25, 0.5, 0.75]) + constant
    std = group_std(x, jnp.zeros(3, jnp.int32), jnp.ones(3, bool))
    np.testing.assert_allclose(std, 0.25, rtol=1e-5)
