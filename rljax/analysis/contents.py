"""What the report of runs shows, as plain data: redacted, and small enough for a page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rljax import __version__
from rljax.analysis import responses
from rljax.analysis.compare import Comparison
from rljax.analysis.figures import about, bounds, held_out, is_length, is_share
from rljax.analysis.reading import Run
from rljax.analysis.series import Series, Window, thinned
from rljax.analysis.summary import summary
from rljax.analysis.verdict import Finding, is_healthy
from rljax.health import Sign
from rljax.host.secrets import redact, redacted
from rljax.lengths import PERCENTILES

MOST_POINTS = 120_000  # of all curves together
POINTS_PER_CURVE = 1_500
MOST_TEXT = 3_000_000  # characters of prompts and responses
LONGEST_TEXT = 20_000  # characters of one of them
MOST_EVENTS = 300  # of a run
LENGTHS = ("min", *(f"p{percent}" for percent in PERCENTILES), "max")  # response_length_*
TABLE_COLUMNS = ("prompt", "response", "length_tokens", "greedy", "truncated", "correct", "source")
REWARDS = ("reward_raw", "shaping", "reward_shaped")


def contents(
    *,
    runs: Sequence[Run],
    names: Sequence[str],
    signs: Sequence[Sign],
    windows: Sequence[Window],
    findings: Sequence[Sequence[Finding]],
    comparisons: Sequence[Comparison],
    weight: float,
) -> dict[str, Any]:
    """All that the page shows, redacted.

    Args:
      windows, findings: of each run.
      comparisons: of each run but the first with it, or none.
      weight: of the smoothing, at first.
    """
    notes = [f"{run.label}: {note}" for run in runs for note in run.notes]
    of_runs = [responses.tables(run, notes) for run in runs]
    each = max(min(POINTS_PER_CURVE, MOST_POINTS // max(len(runs) * len(names), 1)), 50)
    about_runs = [
        _run(*of_run, names, each) for of_run in zip(runs, windows, findings, strict=True)
    ]
    edges = responses.bin_edges(of_runs)
    shown = {
        "version": __version__,
        "weight": weight,
        "runs": about_runs,
        "curves": [_curve(name, runs, signs, each) for name in names],
        "histograms": {
            "edges": edges,
            "runs": [
                [_histogram(table, run, edges) for table in tables if table.rows]
                for run, tables in zip(runs, of_runs, strict=True)
            ],
        },
        "comparisons": [_compared(one) for one in comparisons],
        "notes": notes,
    }
    # What only looks like a secret may well stand in a response, as it does in the run's own files.
    samples = redacted(_samples(runs, of_runs), by_looks=False)
    return _said(shown) | {"samples": samples}


def _run(
    run: Run, window: Window, findings: Sequence[Finding], names: Sequence[str], each: int
) -> dict[str, Any]:
    fan = {name: f"response_length_{name}" for name in LENGTHS} | {"mean": "length_mean"}
    return {
        "label": run.label,
        "folder": str(run.folder),
        "steps": len(set(run.steps)),
        "window": list(window),
        "band": run.band and list(run.band),
        "healthy": is_healthy(findings),
        "findings": [finding._asdict() | {"sound": finding.sound} for finding in findings],
        "summary": [row._asdict() for row in summary(run, names, window)],
        "events": run.events[-MOST_EVENTS:],
        "events_left_out": max(len(run.events) - MOST_EVENTS, 0),
        "fan": {
            name: _points(run.metrics[metric], each)
            for name, metric in fan.items()
            if metric in run.metrics
        },
    }


def _said(tree: Any) -> Any:
    """The tree with every text in it redacted; its many numbers are no secrets."""
    if isinstance(tree, str):
        return redact(tree)
    if isinstance(tree, dict):
        return {name: _said(value) for name, value in tree.items()}
    return [_said(value) for value in tree] if isinstance(tree, list) else tree


def _curve(name: str, runs: Sequence[Run], signs: Sequence[Sign], each: int) -> dict[str, Any]:
    unit, meaning = about(name)
    return {
        "name": name,
        "unit": unit,
        "meaning": meaning,
        "share": is_share(name),
        "length": is_length(name),
        "bounds": bounds(name, signs),
        "runs": [
            {
                "line": _points(run.metrics[name], each) if name in run.metrics else None,
                "held_out": None if (held := held_out(run, name)) is None else _points(held, each),
            }
            for run in runs
        ],
    }


def _points(series: Series, most: int) -> dict[str, Any]:
    thin, bins = thinned(series, most)
    return {
        "steps": thin.steps.tolist(),
        "values": [float(f"{value:.6g}") for value in thin.values.tolist()],
        "bins": bins,
    }


def _histogram(table: responses.Table, run: Run, edges: Sequence[float]) -> dict[str, Any]:
    rows = responses.sampled(table.rows)
    return {
        "step": table.step,
        "count": len(rows),
        "mean": float(np.mean([row["length_tokens"] for row in rows])),
        "bins": responses.histogram(rows, edges),
        "shares": responses.shares(rows, run.band) if run.band else None,
    }


def _compared(comparison: Comparison) -> dict[str, Any]:
    metrics = [d._asdict() | {"difference": d.difference} for d in comparison.metrics]
    config = [list(change) for change in comparison.config]
    return comparison._asdict() | {"metrics": metrics, "config": config}


def _samples(runs: Sequence[Run], of_runs: Sequence[Sequence[responses.Table]]) -> dict[str, Any]:
    """The responses, a table for each evaluation, column by column; every prompt once."""
    prompts: dict[str, int] = {}
    found, left_out = [], 0
    room = MOST_TEXT // max(sum(map(len, of_runs)), 1)  # of a table
    for index, (run, tables) in enumerate(zip(runs, of_runs, strict=True)):
        for table in tables:
            rows = _fitting(table.rows, room, prompts)
            left_out += len(table.rows) - len(rows)
            if not rows:
                continue
            columns = {
                name: [_shown(row.get(name)) for row in rows]
                for name in (*TABLE_COLUMNS, *REWARDS)
                if any(row.get(name) is not None for row in rows)
            }
            columns |= {
                "prompt": [prompts[_shown(row["prompt"])] for row in rows],
                "verdict": responses.verdicts(rows, run.band),
            }
            by_name = {
                name.removeprefix("reward/"): [_shown(row.get(name)) for row in rows]
                for name in rows[0]
                if name.startswith("reward/")
            }
            found.append({"run": index, "step": table.step, "rewards": by_name, **columns})
    return {"prompts": list(prompts), "tables": found, "left_out": left_out}


def _fitting(
    rows: Sequence[dict[str, Any]], room: int, prompts: dict[str, int]
) -> list[dict[str, Any]]:
    """The first rows whose texts have room, their prompts numbered."""
    taken = 0
    for count, row in enumerate(rows):
        prompt = _shown(row["prompt"])
        taken += len(_shown(row["response"])) + (0 if prompt in prompts else len(prompt))
        if taken > room:
            return list(rows[:count])
        prompts.setdefault(prompt, len(prompts))
    return list(rows)


def _shown(value: Any) -> Any:
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"{value[:LONGEST_TEXT]} … [{len(value) - LONGEST_TEXT:,} characters more]"
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value if value is None or isinstance(value, str | int | bool) else str(value)
