"""Whether a run is healthy: the signs of ``rljax.health``, and whether its records are sound."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rljax.analysis.figures import unknown
from rljax.analysis.reading import Run
from rljax.analysis.series import Window
from rljax.errors import UserError
from rljax.health import ENOUGH_IN_BAND, MAX, MIN, SIGNS, Sign, judge

HEALTHY, UNMEASURED, UNHEALTHY = "healthy", "not measured", "unhealthy"  # others: low, high
SKIPPED = "guard/skipped_updates"
NONE = "none"  # is as many as there may be
_BOUNDS = re.compile(r"([^=]+)=([^:]*):([^:]*)")


class Finding(NamedTuple):
    """What was found of one sign."""

    name: str
    value: float | None
    bounds: str
    verdict: str
    meaning: str  # of the verdict, in words

    @property
    def sound(self) -> bool:
        return self.verdict in (HEALTHY, UNMEASURED)


def judged(run: Run, window: Window, signs: Sequence[Sign] = SIGNS) -> list[Finding]:
    """The signs by their means over a window, then the updates left out in it, values in it that
    are not finite, and the records."""
    figures = _means(run, window)
    findings = [_of_sign(sign, figures) for sign in signs]
    return [*findings, _skipped(run, window), _not_finite(run, window), _records(run)]


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing is wrong, and something that says so was measured."""
    about_training = findings[:-2]  # that values are finite, and there, says little
    measured = any(finding.verdict != UNMEASURED for finding in about_training)
    return measured and all(finding.sound for finding in findings)


def with_threshold(signs: Sequence[Sign], text: str, there: set[str]) -> tuple[Sign, ...]:
    """The signs with one that is bounded by ``METRIC=LOW:HIGH``, either side of it empty for none.

    Raises ``UserError`` if it cannot be read, or no run has the metric, which are ``there``.

    >>> with_threshold(SIGNS, "policy/ppo_kl=:0.1", {"policy/ppo_kl"})[-1].high
    0.1
    """
    match = _BOUNDS.fullmatch(text)
    try:
        name, low, high = (part.strip() for part in match.groups()) if match else ("", "", "")
        bounds = [float(bound) if bound else None for bound in (low, high)]
    except ValueError:
        bounds = [None, None]
    low, high = bounds
    if low is high is None or not np.isfinite([b for b in bounds if b is not None]).all():
        raise UserError(
            f'--threshold: cannot read "{text}"; METRIC=LOW:HIGH is needed, such as '
            "reward_shaping_ratio=0:0.2 or policy/ppo_kl=:0.1"
        )
    if low is not None and high is not None and low > high:
        raise UserError(f'--threshold: in "{text}" the lower bound is above the upper one')
    known = {sign.metric: sign for sign in signs}
    if name not in known and name not in there:
        raise UserError(f"--threshold: {unknown(name, there | known.keys())}")
    old = known.get(name, Sign(name, None, None, below="too low", above="too high"))
    new = old._replace(
        low=low,
        high=high,
        below=old.below or "too low",
        above=old.above or "too high",
        low_unless_in_band=False,
    )
    others = {**known, name: new}
    return tuple(others.values())


def _means(run: Run, window: Window) -> dict[str, float | None]:
    figures = {name: series.within(window).mean() for name, series in run.metrics.items()}
    if run.band is not None:
        figures |= {MIN: run.band.min_tokens, MAX: run.band.max_tokens}
    return figures


def _of_sign(sign: Sign, figures: Mapping[str, float | None]) -> Finding:
    value, verdict = figures.get(sign.metric), judge(sign, figures)
    bounds = [figures.get(b) if isinstance(b, str) else b for b in (sign.low, sign.high)]
    if verdict is None:
        meaning = (
            "it was not recorded"
            if value is None
            else "there is no band to judge it by; --min-tokens and --max-tokens give one"
        )
    elif verdict == HEALTHY:
        spared = bounds[0] is not None and value < bounds[0]
        share = f"{ENOUGH_IN_BAND * 100:.0f} %"
        meaning = f"it may be low with at least {share} of the responses in band, or without a band"
        meaning = meaning if spared else ""
    else:
        meaning = sign.below if verdict == "low" else sign.above
    return Finding(sign.metric, value, bounds_text(*bounds), verdict or UNMEASURED, meaning)


def bounds_text(low: float | None, high: float | None) -> str:
    """Bounds in words.

    >>> bounds_text(20, 40), bounds_text(None, 0.5), bounds_text(0.1, None)
    ('20 to 40', 'at most 0.5', 'at least 0.1')
    """
    if low is None:
        return "" if high is None else f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def _skipped(run: Run, window: Window) -> Finding:
    series = run.metrics.get(SKIPPED)
    counts = None if series is None else series.within(window).finite().values
    if counts is None or not counts.size:
        return Finding(SKIPPED, None, NONE, UNMEASURED, "it was not recorded")
    left_out = float(counts.sum())
    why = "updates were left out, for numbers that are not finite or beyond the guard's limits"
    return Finding(SKIPPED, left_out, NONE, *((UNHEALTHY, why) if left_out else (HEALTHY, "")))


def _not_finite(run: Run, window: Window) -> Finding:
    within = {name: series.within(window).values for name, series in run.metrics.items()}
    bad = sorted(name for name, values in within.items() if np.isnan(values).any())
    if not run.steps:
        return Finding("values not finite", None, NONE, UNMEASURED, "there are no records")
    if not bad:
        return Finding("values not finite", 0.0, NONE, HEALTHY, "")
    names = ", ".join(bad[:5]) + (", …" if bad[5:] else "")
    why = f"figures have no number at some step: {names}"
    return Finding("values not finite", float(len(bad)), NONE, UNHEALTHY, why)


def _records(run: Run) -> Finding:
    if not run.steps:
        return Finding("records", None, "no gaps", UNMEASURED, "there are no records")
    if run.faults:
        verdict, why = UNHEALTHY, "; ".join(run.faults)
    else:
        verdict, why = HEALTHY, ""
    return Finding("records", float(len(set(run.steps))), "no gaps", verdict, why)
