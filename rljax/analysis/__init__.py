"""Runs that were recorded, read again: their curves, verdicts and differences. Without JAX."""

from rljax.analysis.compare import Difference, compare, config_differences
from rljax.analysis.finding import find_runs
from rljax.analysis.reading import Run, read_runs
from rljax.analysis.series import Series, Window, last_window
from rljax.analysis.verdict import Finding, is_healthy, judged, with_threshold

__all__ = [
    "Difference",
    "Finding",
    "Run",
    "Series",
    "Window",
    "compare",
    "config_differences",
    "find_runs",
    "is_healthy",
    "judged",
    "last_window",
    "read_runs",
    "with_threshold",
]
