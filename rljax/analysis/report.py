"""The report of runs: one HTML file that needs nothing else, and asks for nothing.

What it shows lies in it as JSON, in which no ``<`` is left; its script puts text into the page as
text alone, and its content security policy lets neither another script run nor anything be loaded.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rljax import __version__
from rljax.analysis import responses
from rljax.analysis.compare import Difference
from rljax.analysis.figures import about, direction, held_out, is_length, is_share
from rljax.analysis.reading import Run
from rljax.analysis.series import Series, Window, thinned
from rljax.analysis.summary import summary
from rljax.analysis.verdict import Finding, is_healthy
from rljax.health import Sign
from rljax.host.metrics import json_text
from rljax.host.secrets import redact, redacted

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("charts.js", "explorer.js", "page.js")
MOST_POINTS = 120_000  # of all curves together
POINTS_PER_CURVE = 1_500
MOST_TEXT = 3_000_000  # characters of prompts and responses
LONGEST_TEXT = 20_000  # characters of one of them
MOST_EVENTS = 300  # of a run
FAN = ("response_length_min", *(f"response_length_p{p}" for p in (5, 50, 95)))
FAN = (*FAN, "response_length_max", "length_mean")
TABLE_COLUMNS = ("prompt", "response", "length_tokens", "greedy", "truncated", "correct", "source")
REWARDS = ("reward_raw", "shaping", "reward_shaped")


def report_page(data: dict[str, Any]) -> str:
    """The page that shows what ``report_data`` made."""
    style = (PAGE / "page.css").read_text("utf-8")
    script = "\n".join((PAGE / name).read_text("utf-8") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "STYLE": style, "DATA": embedded(data), "SCRIPT": script}
    pieces = (PAGE / "page.html").read_text("utf-8").split("%%")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def embedded(data: Any) -> str:
    """JSON that stands between the tags of a script, whatever texts it holds.

    >>> embedded("</script><!--")
    '"\\\\u003c/script\\\\u003e\\\\u003c!--"'
    """
    text = json_text(data)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def report_data(
    runs: Sequence[Run],
    names: Sequence[str],
    *,
    windows: Sequence[Window],
    findings: Sequence[Sequence[Finding]],
    signs: Sequence[Sign],
    differences: Sequence[tuple[Sequence[Difference], Sequence[tuple[str, str, str]], bool]],
    weight: float,
) -> dict[str, Any]:
    """All that the page shows, redacted.

    Args:
      windows, findings: of each run.
      differences: of each run but the first against it: of figures and of the config, and whether
        the two are identical.
      weight: of the smoothing, at first.
    """
    notes = [f"{run.label}: {note}" for run in runs for note in run.notes]
    of_runs = [responses.tables(run, notes) for run in runs]
    each = max(min(POINTS_PER_CURVE, MOST_POINTS // max(len(runs) * len(names), 1)), 50)
    about_runs = [
        {
            "label": run.label,
            "folder": str(run.folder),
            "steps": len(set(run.steps)),
            "last_step": max(run.steps, default=0),
            "window": list(window),
            "band": run.band and list(run.band),
            "healthy": is_healthy(found),
            "findings": [finding._asdict() | {"sound": finding.sound} for finding in found],
            "summary": [row._asdict() for row in summary(run, names, window)],
            "events": run.events[-MOST_EVENTS:],
            "events_left_out": max(len(run.events) - MOST_EVENTS, 0),
            "fan": {
                name.removeprefix("response_length_"): _points(run.metrics[name], each)
                for name in FAN
                if name in run.metrics
            },
        }
        for run, window, found in zip(runs, windows, findings, strict=True)
    ]
    edges = responses.bin_edges(of_runs)
    rows = {
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
        "differences": [_compared(*one) for one in differences],
        "notes": notes,
    }
    # What only looks like a secret may well stand in a response, as it does in the run's own files.
    samples = redacted(_samples(runs, of_runs), by_looks=False)
    return _said(rows) | {"samples": samples}


def _said(tree: Any) -> Any:
    """The tree with every text in it redacted; its many numbers are no secrets."""
    if isinstance(tree, str):
        return redact(tree)
    if isinstance(tree, dict):
        return {name: _said(value) for name, value in tree.items()}
    return [_said(value) for value in tree] if isinstance(tree, list) else tree


def _curve(name: str, runs: Sequence[Run], signs: Sequence[Sign], each: int) -> dict[str, Any]:
    unit, meaning = about(name)
    bounds = [sign for sign in signs if sign.metric == name]
    return {
        "name": name,
        "unit": unit,
        "meaning": meaning,
        "better": direction(name),
        "share": is_share(name),
        "length": is_length(name) or any(isinstance(sign.low, str) for sign in bounds),
        "bounds": [b for s in bounds for b in (s.low, s.high) if isinstance(b, float)],
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


def _compared(
    differences: Sequence[Difference], config: Sequence[tuple[str, str, str]], identical: bool
) -> dict[str, Any]:
    return {
        "identical": identical,
        "metrics": [d._asdict() | {"difference": d.difference} for d in differences],
        "config": [list(change) for change in config],
    }


def _samples(runs: Sequence[Run], of_runs: Sequence[Sequence[responses.Table]]) -> dict[str, Any]:
    """The responses, a table for each evaluation, column by column; every prompt once."""
    prompts: dict[str, int] = {}
    found, left_out = [], 0
    room = MOST_TEXT // max(sum(map(len, of_runs)), 1)  # of a table
    for index, (run, tables) in enumerate(zip(runs, of_runs, strict=True)):
        for table in tables:
            rows = _fitting(table.rows, room, prompts)
            left_out += len(table.rows) - len(rows)
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
                for name in (rows[0] if rows else ())
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


def _digest(text: str) -> str:
    """Of a script or style, as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
