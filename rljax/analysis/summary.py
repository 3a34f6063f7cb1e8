"""The figures of a run in short: where they began, where they stand, and the best of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rljax.analysis.figures import direction, held_out
from rljax.analysis.reading import Run
from rljax.analysis.series import Window


class Row(NamedTuple):
    """Of one figure; None where there is nothing."""

    metric: str
    first: float | None  # of training: the first number,
    last: float | None  # the mean over the last window,
    best: float | None  # and the best, where it is known which are better
    best_step: int | None
    before: float | None  # of the first evaluation and the last, if there are two
    after: float | None


def summary(run: Run, names: Sequence[str], window: Window) -> list[Row]:
    """The figures among ``names`` that a run has."""
    return [_row(run, name, window) for name in names if _has(run, name)]


def _has(run: Run, name: str) -> bool:
    return name in run.metrics or held_out(run, name) is not None


def _row(run: Run, name: str, window: Window) -> Row:
    series, points = run.metrics.get(name), held_out(run, name)
    first = last = best = best_step = before = after = None
    if series is not None and (there := series.finite()).values.size:
        first, last = float(there.values[0]), series.within(window).mean()
        if way := direction(name):
            place = int(np.argmax(way * there.values))
            best, best_step = float(there.values[place]), int(there.steps[place])
    if points is not None and (there := points.finite()).values.size:
        after = float(there.values[-1])
        before = float(there.values[0]) if there.values.size > 1 else None
    return Row(name, first, last, best, best_step, before, after)


def number_text(value: float | None) -> str:
    """Four digits that count.

    >>> number_text(0.98765), number_text(26.9453125), number_text(-1.6e-08), number_text(None)
    ('0.9877', '26.95', '-1.6e-08', '')
    """
    return "" if value is None else f"{value:.4g}"
