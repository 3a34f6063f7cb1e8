"""Runs that were recorded, read again: their curves, verdicts and differences. Without JAX."""

from rljax.analysis.compare import Comparison, compare
from rljax.analysis.finding import find_runs
from rljax.analysis.reading import Run, read_runs
from rljax.analysis.series import Series, Window, last_window
from rljax.analysis.verdict import Finding, is_healthy, judged, with_threshold

__all__ = [
    "Comparison",
    "Finding",
    "Run",
    "Series",
    "Window",
    "compare",
    "find_runs",
    "is_healthy",
    "judged",
    "last_window",
    "read_runs",
    "with_threshold",
]
