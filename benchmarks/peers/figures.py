"""What was measured, from what the frameworks print to the ratios of the table."""

import itertools
import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from rich.table import Table

from benchmarks.peers.job import MEASURED

OURS = "rljax"


class Run(NamedTuple):
    """Of one process of a framework."""

    step_seconds: float | None  # the median of the steady steps, None if there are none
    first_seconds: float  # from the start of the process to the end of its first step
    response_tokens: int  # of a step
    peak_bytes: int
    packages: dict[str, str]


class Pair(NamedTuple):
    """A framework's runs of one repeat, in which all frameworks take their turns."""

    cold: Run
    warm: Run | None  # with the compilations of the first kept; None: it compiles nothing


class Ratio(NamedTuple):
    """Over the pairs: how many times ours."""

    median: float
    low: float
    high: float


def parse(output: str, started: float, *, warmup: int) -> Run:
    """The run of a process that was ``started`` then, on the clock of ``time.monotonic``, and whose
    first ``warmup`` steps are not steady yet.

    Raises ``ValueError`` if it does not end with what it measured.
    """
    lines = [line for line in output.splitlines() if line.startswith(MEASURED)]
    if not lines:
        raise ValueError("it printed no measurement")
    measured = json.loads(lines[-1].removeprefix(MEASURED))
    ends = measured.pop("ends")
    if not ends:
        raise ValueError("no step ended")
    steps = [after - before for before, after in itertools.pairwise(ends)][warmup - 1 :]
    return Run(median(steps) if steps else None, ends[0] - started, **measured)


def compared(runs: Mapping[str, Sequence[Pair]]) -> dict[str, dict]:
    """The figures of each framework: medians over its runs, and ratios to ours of the same repeat,
    if ours were run."""
    return {name: _figures(pairs, runs.get(OURS)) for name, pairs in runs.items()}


def _figures(pairs: Sequence[Pair], ours: Sequence[Pair] | None) -> dict:
    read = {
        "step_seconds": lambda pair: pair.cold.step_seconds,
        "first_seconds_cold": lambda pair: pair.cold.first_seconds,
        "first_seconds_warm": lambda pair: (pair.warm or pair.cold).first_seconds,
    }
    figures: dict = {name: median(map(of, pairs)) for name, of in read.items()}
    figures["tokens_per_second"] = median(
        pair.cold.response_tokens / pair.cold.step_seconds for pair in pairs
    )
    figures["peak_bytes"] = max(pair.cold.peak_bytes for pair in pairs)
    if ours is not None:
        figures["ratios"] = {
            name: _ratio([of(a) / of(b) for a, b in zip(pairs, ours, strict=True)])._asdict()
            for name, of in read.items()
        }
    return figures


def _ratio(ratios: Sequence[float]) -> Ratio:
    return Ratio(median(ratios), min(ratios), max(ratios))


def table(title: str, figures: Mapping[str, dict], absent: Mapping[str, str]) -> Table:
    """A row for each framework; below, of those that are ``absent`` why they were not run."""
    reasons = "\n".join(f"{name} was not run: {why}" for name, why in absent.items())
    shown = Table(title=title, caption=reasons or None)
    shown.add_column("framework")
    for column in ("step (s)", "ratio", "tokens/s", "first step (s)", "ratio", "warm (s)"):
        shown.add_column(column, justify="right")
    for column in ("ratio", "peak (MiB)"):
        shown.add_column(column, justify="right")
    for name, row in figures.items():
        ratios = {of: _shown_ratio(Ratio(**ratio)) for of, ratio in row.get("ratios", {}).items()}
        shown.add_row(
            name,
            f"{row['step_seconds']:.3f}",
            ratios.get("step_seconds", ""),
            f"{row['tokens_per_second']:,.0f}",
            f"{row['first_seconds_cold']:.1f}",
            ratios.get("first_seconds_cold", ""),
            f"{row['first_seconds_warm']:.1f}",
            ratios.get("first_seconds_warm", ""),
            f"{row['peak_bytes'] / 2**20:,.0f}",
        )
    return shown


def _shown_ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
