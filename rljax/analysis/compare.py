"""How one run differs from another: which figures, by how much, and whether that is beyond noise.

The means over the last windows are compared by Welch's t (Welch, 1947, "The generalization of
'Student's' problem when several different population variances are involved"). Neighbouring steps
are alike, so that n steps tell as much as n' = n (1 − ρ) / (1 + ρ) independent ones, ρ their
correlation with the step before (Zwiers and von Storch, 1995, "Taking serial correlation into
account in tests of the mean"). From few steps ρ is estimated too small by about (1 + 4 ρ) / n
(Marriott and Pope, 1954, "Bias in the estimation of autocorrelations"), and corrected for that.
Of many figures some differ by chance: of those said to be beyond the noise, one in twenty may be
(Benjamini and Hochberg, 1995, "Controlling the false discovery rate").
"""

import math
from typing import Any, NamedTuple

import numpy as np

from rljax.analysis.reading import Run
from rljax.analysis.series import Series, Window
from rljax.config_file import flatten
from rljax.host.metrics import json_text

LEVEL = 0.05  # share, of what counts as beyond noise, that may be noise
MOST_CORRELATED = 0.95
LEAST_STEPS = 3  # below, nothing is known of the noise
ABSENT = "absent"


class Comparison(NamedTuple):
    """Of a run with the first."""

    metrics: list["Difference"]  # that are not identical, those beyond the noise first
    identical: list[str]  # names of those that are, at every step, bit by bit
    only_first: list[str]
    only_second: list[str]
    config: list[tuple[str, str, str]]  # (key, value of the first, value of the second)
    same: bool  # whether everything recorded is, but for what is timed


class Difference(NamedTuple):
    """Of a figure, in the second run against the first."""

    name: str
    first: float  # means over the windows
    second: float
    relative: float | None  # of the difference, to the first's size
    p_value: float | None  # None where there are too few steps
    beyond_noise: bool

    @property
    def difference(self) -> float:
        return self.second - self.first


def compare(first: Run, second: Run, windows: tuple[Window, Window]) -> Comparison:
    """How the second run differs: figures that both have by the difference relative to the size of
    both means, those beyond the noise first."""
    found, identical = [], []
    for name in sorted(first.metrics.keys() & second.metrics.keys()):
        one, other = first.metrics[name], second.metrics[name]
        parts = [s.within(w).finite().values for s, w in zip((one, other), windows, strict=True)]
        if is_identical(one, other):
            identical.append(name)
        elif all(part.size for part in parts):
            found.append(_difference(name, *parts))
    return Comparison(
        metrics=sorted(_beyond_noise(found), key=lambda d: (not d.beyond_noise, -_effect(d))),
        identical=identical,
        only_first=sorted(first.metrics.keys() - second.metrics.keys()),
        only_second=sorted(second.metrics.keys() - first.metrics.keys()),
        config=config_differences(first, second),
        same=are_identical(first, second),
    )


def is_identical(one: Series, other: Series) -> bool:
    """Bit by bit, at every step."""
    return np.array_equal(one.steps, other.steps) and (
        one.values.tobytes() == other.values.tobytes()
    )


def are_identical(first: Run, second: Run) -> bool:
    """Whether two runs have recorded the same, but for what is timed."""
    names = {name for name in first.names | second.names if not name.startswith("perf/")}
    return bool(names) and all(
        name in one and name in other and is_identical(one[name], other[name])
        for one, other in ((first.metrics, second.metrics), (first.held_out, second.held_out))
        for name in names & (one.keys() | other.keys())
    )


def config_differences(first: Run, second: Run) -> list[tuple[str, str, str]]:
    """(key, value of the first, value of the second) where the configs differ, but for where the
    runs lie."""
    one, other = flatten(first.config), flatten(second.config)
    return [
        (key, _shown(one, key), _shown(other, key))
        for key in sorted(one.keys() | other.keys())
        if key != "run_dir" and (key not in one or key not in other or one[key] != other[key])
    ]


def welch(one: np.ndarray, other: np.ndarray) -> float | None:
    """The probability that means differ at least so much by chance; None of too few values.

    >>> steady = np.array([1.0, 1.1, 0.9, 1.0, 1.1, 0.9])
    >>> welch(steady, steady + 1.0) < 0.001 < welch(steady, steady + 0.01)
    True
    """
    from scipy.special import stdtr  # which takes longer to import than all the rest

    if min(len(one), len(other)) < LEAST_STEPS:
        return None
    counts = [effective_count(values) for values in (one, other)]
    errors = [values.var(ddof=1) / n for values, n in zip((one, other), counts, strict=True)]
    gap, error = abs(float(other.mean() - one.mean())), sum(errors)
    if error == 0:
        return 0.0 if gap else 1.0
    freedom = error**2 / sum(e**2 / max(n - 1, 1) for e, n in zip(errors, counts, strict=True))
    return float(2 * stdtr(freedom, -gap / math.sqrt(error)))


def effective_count(values: np.ndarray) -> float:
    """How many independent values tell as much of the mean as these, at least two.

    >>> effective_count(np.tile([0.0, 1.0], 50)), effective_count(np.arange(100.0)) < 5
    (100.0, True)
    """
    count, off = len(values), values - values.mean()
    spread = float(np.square(off).sum())
    rho = float((off[1:] * off[:-1]).sum()) / spread if spread else 0.0
    rho = min(max(rho + (1 + 4 * rho) / count, 0.0), MOST_CORRELATED)
    return max(count * (1 - rho) / (1 + rho), 2.0)


def _difference(name: str, one: np.ndarray, other: np.ndarray) -> Difference:
    first, second = float(one.mean()), float(other.mean())
    return Difference(
        name=name,
        first=first,
        second=second,
        relative=(second - first) / abs(first) if first else None,
        p_value=welch(one, other),
        beyond_noise=False,
    )


def _beyond_noise(found: list[Difference]) -> list[Difference]:
    """Those up to the last whose p-value, the k-th smallest of m, is at most LEVEL · k / m."""
    tested = [d for d in found if d.p_value is not None]
    tested.sort(key=lambda d: d.p_value)
    held = [d.p_value <= LEVEL * k / len(tested) for k, d in enumerate(tested, start=1)]
    count = max((k for k, holds in enumerate(held, start=1) if holds), default=0)
    beyond = {d.name for d in tested[:count]}
    return [d._replace(beyond_noise=d.name in beyond) for d in found]


def _effect(difference: Difference) -> float:
    size = abs(difference.first) + abs(difference.second)
    return abs(difference.difference) / size if size else 0.0


def _shown(config: dict[str, Any], key: str) -> str:
    if key not in config:
        return ABSENT
    value = config[key]  # in YAML's words
    return json_text(value) if value is None or isinstance(value, bool) else str(value)
