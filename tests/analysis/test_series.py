"""Windows, smoothing and thinning, against numbers from the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rljax.analysis.series import Window, last_window, series_of, smoothed, thinned


def test_a_series_is_in_order_and_keeps_what_was_recorded_last():
    series = series_of([3, 1, 2, 3], [0.3, 0.1, None, 0.4])
    assert series.steps.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(series.values, [0.1, np.nan, 0.4])
    assert series.mean() == pytest.approx(0.25)
    assert series.within(Window(2, 2)).mean() is None
    assert series_of([1], [float("inf")]).mean() is None


@pytest.mark.parametrize(
    ("steps", "share", "window"),
    [
        (range(1, 81), 0.1, (73, 80)),
        (range(1, 21), 0.1, (16, 20)),
        (range(1, 4), 0.1, (1, 3)),
        (range(10, 1001, 10), 0.1, (910, 1000)),
        ([7], 1.0, (7, 7)),
        ([], 0.1, (0, 0)),
    ],
)
def test_the_last_window(steps, share, window):
    assert last_window(steps, share) == window


def test_smoothing_by_hand():
    """s1 = 1; s2 = (0.5·0.5·1 + 0.5·3) / 0.75; the gap changes nothing."""
    line = smoothed(np.array([1.0, 3.0, np.nan, 3.0]), 0.5)
    np.testing.assert_allclose(line, [1.0, 7 / 3, np.nan, (0.875 + 1.5) / 0.875], rtol=1e-12)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.floats(0, 0.99))
def test_smoothing_stays_within_what_was_recorded(values, weight):
    line = smoothed(np.array(values), weight)
    assert np.isfinite(line).all()
    assert line.min() >= min(values) - 1e-6
    assert line.max() <= max(values) + 1e-6


def test_without_weight_nothing_is_smoothed():
    values = np.array([1.0, 5.0, -2.0])
    assert smoothed(values, 0.0).tolist() == values.tolist()


def test_thinning_takes_means_of_neighbours():
    series = series_of(range(1, 8), [1, 3, None, 5, 7, 9, 11])
    thin, bins = thinned(series, 3)
    assert bins == 3
    assert thin.steps.tolist() == [3, 6, 7]
    assert thin.values.tolist() == [2, 7, 11]
    assert thinned(series, 7) == (series, 1)
    assert len(thinned(series_of(range(10_001), [0.0] * 10_001), 1_000)[0].steps) <= 1_000
