"""A figure over the steps of a run: a stretch of it, its mean, and the line that it follows."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST_STEPS = 5  # of a window
LARGEST = float(np.finfo(np.float32).max)  # of a number that a run computes


class Series(NamedTuple):
    """Of one figure."""

    steps: np.ndarray  # int64, ascending
    values: np.ndarray  # float64; NaN where what was recorded is not finite

    def within(self, window: "Window") -> "Series":
        inside = (self.steps >= window.first) & (self.steps <= window.last)
        return Series(self.steps[inside], self.values[inside])

    def finite(self) -> "Series":
        there = np.isfinite(self.values)
        return Series(self.steps[there], self.values[there])

    def mean(self) -> float | None:
        """Of the finite values; None if there is none."""
        values = self.finite().values
        return float(values.mean()) if values.size else None


class Window(NamedTuple):
    """The steps from ``first`` to ``last``, both included."""

    first: int
    last: int


def series_of(steps: Sequence[int], values: Sequence[float | None]) -> Series:
    """In the order of the steps; of a step that is there twice, what was recorded last."""
    told = dict(zip(steps, values, strict=True))
    numbers = [math.nan if told[step] is None else told[step] for step in sorted(told)]
    found = np.array(numbers, np.float64)
    return Series(
        np.array(sorted(told), np.int64), np.where(np.abs(found) <= LARGEST, found, np.nan)
    )


def last_window(steps: Sequence[int], share: float) -> Window:
    """The last ``share`` of the recorded steps, and at least five of them if there are as many.

    >>> last_window(range(1, 101), 0.1), last_window([10, 20], 0.1)
    (Window(first=91, last=100), Window(first=10, last=20))
    """
    recorded = sorted(set(steps))
    if not recorded:
        return Window(0, 0)
    count = max(LEAST_STEPS, math.ceil(share * len(recorded)))
    return Window(recorded[-count:][0], recorded[-1])


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """The exponential moving average, its start corrected for bias, as TensorBoard draws it.

    s_t = weight · s_{t−1} + (1 − weight) · x_t with s_0 = 0, over 1 − weightᵗ. What is not finite
    is passed over, and stays a gap. The correction is Adam's (Kingma and Ba, 2015, section 3).

    >>> smoothed(np.array([4.0, 4.0, np.nan, 8.0]), 0.5).round(2).tolist()
    [4.0, 4.0, nan, 6.29]
    """
    line = np.full(len(values), np.nan)
    average, left = 0.0, 1.0
    for index, value in enumerate(values.tolist()):
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            left *= weight
            line[index] = average / (1 - left)
    return line


def thinned(series: Series, most: int) -> tuple[Series, int]:
    """Means over so many neighbouring steps that at most ``most`` points remain, and how many."""
    bins = -(-len(series.steps) // most) or 1
    if bins == 1:
        return series, 1
    groups = np.arange(len(series.steps)) // bins
    there = np.isfinite(series.values)
    counts = np.bincount(groups, there)
    sums = np.bincount(groups, np.where(there, series.values, 0.0))
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    last = np.append(np.flatnonzero(np.diff(groups)), len(groups) - 1)
    return Series(series.steps[last], means), bins
