"""A run as it was recorded: what rljax writes into its folder, or TensorBoard's event files."""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rljax.analysis.finding import EVALUATIONS, METRICS, has_events, labels
from rljax.analysis.series import Series, series_of
from rljax.analysis.tensorboard import read_scalars
from rljax.config_file import read_config_file
from rljax.errors import UserError
from rljax.health import MAX, MIN
from rljax.host.metrics import read_lines
from rljax.lengths import check_band

# What has happened to a run that is worth seeing, of what ``events.jsonl`` tells.
WORTH_SEEING = (
    *("warning", "skipped", "rolled back", "damaged", "error", "stopped", "early stop"),
    *("resume", "forked", "changed", "controller", "best"),
)


HELD_OUT = "eval/"  # stands before the figures of an evaluation where others are beside them
LAST_STEP = 2**53  # beyond which a browser's numbers have gaps


class Band(NamedTuple):
    """The lengths that are asked for."""

    min_tokens: float
    max_tokens: float


class Run(NamedTuple):
    label: str
    folder: Path
    steps: tuple[int, ...]  # of the records of training, in the order of the file
    metrics: dict[str, Series]
    held_out: dict[str, Series]  # figures of the evaluations
    config: dict[str, Any]
    band: Band | None
    events: list[dict[str, Any]]  # that are worth seeing
    faults: list[str]  # of the records: what is damaged, missing, or there twice
    notes: list[str]  # what could not be read beside them

    @property
    def names(self) -> set[str]:
        """Of the figures that it has."""
        return self.metrics.keys() | self.held_out.keys()


def read_runs(folders: Sequence[Path], band: Band | None = None) -> list[Run]:
    """The runs in folders that hold records; a ``band`` takes the place of their own.

    Raises ``UserError`` for records that cannot be read at all.
    """
    return [
        read_run(folder, label, band)
        for folder, label in zip(folders, labels(folders), strict=True)
    ]


def read_run(folder: Path, label: str, band: Band | None = None) -> Run:
    """One of them."""
    recorded = (folder / METRICS).is_file() or (folder / EVALUATIONS).is_file()
    notes: list[str] = []
    config = _config(folder, notes)
    held_out: dict[str, Series] = {}
    steps: tuple[int, ...] = ()
    faults: list[str] = []
    if recorded:
        records, damaged = _records(folder / METRICS)
        evaluations, damaged_too = _records(folder / EVALUATIONS)
        steps, metrics = tuple(record["step"] for record in records), columns(records)
        held_out = columns(evaluations)
        faults = _faults(steps, damaged)
        if damaged_too:
            faults.append(f"{damaged_too} damaged line(s) in {EVALUATIONS}")
    else:
        scalars = read_scalars(folder) if has_events(folder) else {}
        held_out = {
            tag.removeprefix(HELD_OUT): series
            for tag, series in scalars.items()
            if tag.startswith(HELD_OUT)
        }
        metrics = {tag: one for tag, one in scalars.items() if not tag.startswith(HELD_OUT)}
        steps = tuple(sorted({int(step) for one in metrics.values() for step in one.steps}))
    return Run(
        label=label,
        folder=folder,
        steps=steps,
        metrics=metrics,
        held_out=held_out,
        config=config,
        band=band or _band(config, metrics, notes),
        events=_events(folder),
        faults=faults,
        notes=notes,
    )


def columns(records: Sequence[dict[str, Any]]) -> dict[str, Series]:
    """Records, which need not have the same figures, as a series for each figure."""
    found: dict[str, tuple[list[int], list[float | None]]] = {}
    for record in records:
        for name, value in record.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and (value is None or is_number):
                steps, values = found.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(_number(value))
    return {name: series_of(*points) for name, points in found.items()}


def _number(value: int | float | None) -> float | None:
    try:
        return None if value is None else float(value)
    except OverflowError:
        return math.inf


def _records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records that can be read, and how many lines cannot."""
    try:
        found = [line.record for line in read_lines(path)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    records = [r for r in found if r is not None and 0 <= r["step"] < LAST_STEP]
    return records, len(found) - len(records)


def _faults(steps: Sequence[int], damaged: int) -> list[str]:
    found = [f"{damaged} damaged line(s)"] if damaged else []
    there = sorted(set(steps))
    if twice := len(steps) - len(there):
        found.append(f"{twice} step(s) there more than once")
    if there and there[-1] != len(there):
        first = next(n for n, step in enumerate([*there, None], start=1) if step != n)
        found.append(f"{there[-1] - len(there)} step(s) missing, the first of them {first}")
    return found


def _config(folder: Path, notes: list[str]) -> dict[str, Any]:
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        return read_config_file(path, [])
    except UserError as error:
        notes.append(str(error))
        return {}


def _band(config: dict[str, Any], metrics: dict[str, Series], notes: list[str]) -> Band | None:
    """By the config, or else by the edges that were recorded."""
    asked = config.get("length")
    edges = [asked.get(name) for name in Band._fields] if isinstance(asked, dict) else []
    if None in edges or not edges:
        edges = [_last(metrics.get(MIN)), _last(metrics.get(MAX))]
    if None in edges:
        return None
    try:
        check_band(*edges)
    except (TypeError, UserError) as error:
        notes.append(f"length: {error}")
        return None
    return Band(*edges)


def _last(series: Series | None) -> float | None:
    values = series.finite().values if series is not None else ()
    return float(values[-1]) if len(values) else None


def _events(folder: Path) -> list[dict[str, Any]]:
    found = []
    with contextlib.suppress(OSError):
        for line in read_lines(folder / "events.jsonl"):
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(line.text))  # an event need not have a step
    return [
        {"time": str(event.get("time", "")), "event": event["event"], "text": event_text(event)}
        for event in found
        if isinstance(event, dict) and event.get("event") in WORTH_SEEING
    ]


def event_text(event: dict[str, Any]) -> str:
    """An event in words.

    >>> event_text({"time": "12:00", "event": "resume", "phase": "train", "step": 40})
    'phase train, step 40'
    """
    at = f"step {event['step']}: " if "step" in event else ""
    if "text" in event:
        return f"{at}{event['text']}"
    others = (name for name in event if name not in ("time", "event"))
    return ", ".join(f"{name} {event[name]}" for name in others)
