"""The responses of a run's evaluations: their lengths, judged by the policy of training."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rljax.analysis.reading import Band, Run
from rljax.errors import UserError
from rljax.host.samples import read_samples, sampled_steps
from rljax.lengths import VERDICTS, length_figures, verdict

MOST_TABLES = 12  # of a run: its first evaluation, its last, and some between
BINS = 24  # of a histogram


class Table(NamedTuple):
    """Of one evaluation."""

    step: int
    rows: list[dict[str, Any]]


def tables(run: Run, notes: list[str]) -> list[Table]:
    """Those that can be read, at most ``MOST_TABLES``; ``notes`` gets a line for what is not."""
    steps = sampled_steps(run.folder)
    if len(steps) > MOST_TABLES:
        notes.append(f"{run.label}: the samples of {MOST_TABLES} of {len(steps)} evaluations")
        steps = [steps[round(at)] for at in np.linspace(0, len(steps) - 1, MOST_TABLES)]
    found = []
    for step in steps:
        try:
            rows = read_samples(run.folder, step)
        except UserError as error:
            notes.append(str(error))
            continue
        found.append(Table(step, [row for row in rows if _is_whole(row)]))
    return found


def verdicts(rows: Sequence[dict[str, Any]], band: Band | None) -> list[str | None]:
    """Of each response, by its length; None without a band."""
    if band is None or not rows:
        return [None] * len(rows)
    return [VERDICTS[v] for v in verdict(_lengths(rows), *band).tolist()]


def shares(rows: Sequence[dict[str, Any]], band: Band) -> dict[str, float]:
    """The shares of responses in the band, longer, shorter, and cut off by the budget.

    >>> row = {"length_tokens": 50, "truncated": True}
    >>> shares([row, row | {"length_tokens": 30, "truncated": False}], Band(20, 40))
    {'in band': 0.5, 'long': 0.5, 'short': 0.0, 'truncated': 0.5}
    """
    lengths, count = _lengths(rows), len(rows)
    cut = np.array([bool(row.get("truncated")) for row in rows], bool)
    figures = length_figures(lengths, cut, np.ones(count, bool), *band)
    found = verdict(lengths, *band)
    return {
        VERDICTS[0]: float(figures["in_band_ratio"]),
        VERDICTS[1]: float((found == 1).sum() / max(count, 1)),
        VERDICTS[2]: float((found == -1).sum() / max(count, 1)),
        "truncated": float(figures["truncated_ratio"]),
    }


def sampled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that were drawn, or all where every one is greedy."""
    return [row for row in rows if not row.get("greedy")] or list(rows)


def bin_edges(of_runs: Sequence[Sequence[Table]]) -> list[float]:
    """Whole tokens that the histograms of all runs share."""
    longest = max(
        (row["length_tokens"] for tables in of_runs for table in tables for row in table.rows),
        default=0,
    )
    width = -(-(longest + 1) // BINS)
    return [float(edge) for edge in range(0, longest + 1 + width, width)]


def histogram(rows: Sequence[dict[str, Any]], edges: Sequence[float]) -> list[int]:
    """How many responses have a length from each edge up to the next."""
    return np.histogram(_lengths(rows), edges)[0].tolist()


def _lengths(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    return np.array([row["length_tokens"] for row in rows], np.int64)


def _is_whole(row: dict[str, Any]) -> bool:
    """Whether a response can be judged and shown."""
    texts = all(isinstance(row.get(name), str) for name in ("prompt", "response"))
    return texts and isinstance(row.get("length_tokens"), int) and row["length_tokens"] >= 0
