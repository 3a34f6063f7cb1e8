"""``python -m benchmarks.monitoring``: which alerts fire for runs that a Prometheus looks at.

Two runs of the embedded task at once: with shaping, and made unhealthy on purpose, without
(``shaping=off``). Beside them a server whose lengths are made up, behind the middleware: of its two
models one keeps to the band. A Prometheus with the rules of ``launch/monitoring``, whose times are
shorter by a factor, asks all of them every second. For what is healthy no alert may fire from
beginning to end; for what is not, alerts must, and for the end of both runs. Every query of the
dashboard is then run there. Prints a table, and may draw what Prometheus recorded. Needs Debian's
package prometheus, and three to five minutes on two CPU cores.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import pyplot as plt

from benchmarks.processes import ROOT, head, log, row, running
from benchmarks.scraped import DASHBOARD, Prometheus, Query, free_port, names, prometheus, queries
from benchmarks.served import MODELS, serving
from rljax.health import MAX, MIN, SIGNS
from rljax.metrics import PREFIX

PATIENCE_SECONDS = 1800
RUNS = {"shaped": [], "unshaped": ["shaping=off"]}
FIRES = {  # for a run, or for a model that is served; for the others nothing may
    "unshaped": {"RljaxResponsesTooLong", "RljaxShapingTooWeak"},
    "rambling": {
        *("RljaxResponsesTooLong", "RljaxTruncatedHigh"),
        *("RljaxServingOutOfBand", "RljaxServingTruncated"),
    },
}
GONE = "RljaxTrainingGone"
LABELS = ("run", "model")  # by which they are told apart
FIRING = 'ALERTS{alertstate="firing"}'
ABSENT = {"rljax_reward_grad_norm", "rljax_reward_loss", "rljax_rewards_failed"}  # not told here
CONFIG = ROOT / "configs" / "addition.yaml"
COLORS = {"shaped": "#1f77b4", "unshaped": "#ff7f0e"}
HEALTHY = "#2ca02c"


class Seen(NamedTuple):
    """What Prometheus was asked, and from when to when."""

    server: Prometheus
    start: float
    end: float

    def series(self, query: str) -> list[dict]:
        return self.server.over(query, self.start, self.end)

    def fired(self, subject: str) -> set[str]:
        """The alerts that fired for a run, or for a model that is served."""
        found = [s for by in LABELS for s in self.series(f'{FIRING[:-1]}, {by}="{subject}"}}')]
        return {series["metric"]["alertname"] for series in found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitoring", description=__doc__)
    parser.add_argument("settings", nargs="*", help="of both runs, such as warm_start.steps=600")
    parser.add_argument("--picture", type=Path, help="where it is drawn, a PNG")
    text = "of the times in the rules; by default 10: ten minutes are one"
    parser.add_argument("--speedup", type=float, default=10, help=text)
    options = parser.parse_args()
    picture = options.picture and options.picture.absolute()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        ports, served = {run: free_port() for run in RUNS}, free_port()
        targets = {
            "rljax_training": ("/metrics", list(ports.values())),
            "rljax_serving": ("/rljax/metrics", [served]),
        }
        with (
            prometheus(Path(folder, "prometheus"), targets, options.speedup) as server,
            serving(CONFIG, served),
        ):
            start = time.time()
            train(ports, options.settings)
            wait_for_the_end(server, 600 / options.speedup)
            seen = Seen(server, start, time.time())
            if picture:
                draw(seen, picture)
            check(seen)


def train(ports: dict[str, int], settings: Sequence[str]) -> None:
    """All runs at once, to their ends."""
    with contextlib.ExitStack() as stack:
        started = [
            (run, stack.enter_context(running(Path(run), [*settings, *own, at(ports[run])])))
            for run, own in RUNS.items()
        ]
        for run, (process,) in started:
            if code := process.wait(PATIENCE_SECONDS):
                sys.exit(f"{run}: code {code}; {log(Path(run), 0, 'err').read_text()}")


def at(port: int) -> str:
    return f"metrics.prometheus.port={port}"


def wait_for_the_end(server: Prometheus, seconds: float) -> None:
    """Until an alert says of both runs that they answer no more."""
    deadline = time.monotonic() + seconds
    query = f'count(ALERTS{{alertname="{GONE}", alertstate="firing"}}) == {len(RUNS)}'
    while not server.ask("query", query=query)["result"]:
        if time.monotonic() > deadline:
            sys.exit(f"{GONE} does not fire for runs that ended")
        time.sleep(0.2)


def check(seen: Seen) -> None:
    """Prints what was seen of the runs and the dashboard; ends with 1 if it should not be so."""
    wrong = []
    head("", "length_penalty_mean", "response_length_p95", "reward_shaping_ratio", "alerts")
    for subject in (*RUNS, *MODELS):
        fired, expected = seen.fired(subject), FIRES.get(subject, set())
        row(subject, *(last(seen, sign.metric, subject) for sign in SIGNS[:3]), told(fired))
        if fired and not expected:
            wrong.append(f"{subject} is healthy, and has alerts: {told(fired)}")
        if not fired >= expected:
            wrong.append(f"{subject} is not healthy, and has no alert {told(expected - fired)}")
    answered, empty = ask_all(seen, queries(json.loads(DASHBOARD.read_text()), "5s"))
    print(f"\n{answered} of the dashboard's queries have data")
    wrong += [f"no data in panel {query.panel!r}: {query.text}" for query in empty]
    if wrong:
        sys.exit("\n".join(wrong))


def ask_all(seen: Seen, asked: list[Query]) -> tuple[int, list[Query]]:
    """How many queries have data, and which have none though it is told what they ask for."""
    empty = [query for query in asked if not seen.series(query.text)]
    return len(asked) - len(empty), [query for query in empty if not names(query.text) & ABSENT]


def told(alerts: set[str]) -> str:
    return ", ".join(sorted(alerts)) or "none"


def last(seen: Seen, metric: str, subject: str) -> str:
    found = [s for by in LABELS for s in seen.series(f'{PREFIX}{metric}{{{by}="{subject}"}}')]
    return f"{float(found[0]['values'][-1][1]):.3g}" if found else ""


def draw(seen: Seen, path: Path) -> None:
    """The three figures of the runs with what is healthy, and when which alert fired."""
    figure, axes = plt.subplots(4, 1, figsize=(9, 10), sharex=True, layout="constrained")
    for axis, sign in zip(axes, SIGNS[:3], strict=False):
        for run, color in COLORS.items():
            for series in seen.series(f'{PREFIX}{sign.metric}{{run="{run}"}}'):
                axis.plot(*points(seen, series), color=color, label=run)
        low, high = (edge(seen, bound) for bound in (sign.low, sign.high))
        axis.axhspan(low or 0, high, color=HEALTHY, alpha=0.12, lw=0, label="healthy")
        axis.set_ylim(bottom=0)
        axis.set_title(f"{PREFIX}{sign.metric}", fontsize=10, loc="left")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    rows = [
        (f"{series['metric']['alertname']} ({series['metric'].get('run', 'both')})", series)
        for series in seen.series(f'max by (alertname, run) ({FIRING[:-1]}, source!="serving"}})')
    ]
    for place, (_, series) in enumerate(rows):
        color = COLORS.get(series["metric"].get("run"), "grey")
        axes[3].scatter(
            points(seen, series)[0], [place] * len(series["values"]), marker="s", s=12, color=color
        )
    axes[3].set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes[3].set_ylim(-0.5, max(len(rows), 1) - 0.5)
    axes[3].set_title("alerts firing", fontsize=10, loc="left")
    axes[3].set_xlabel("seconds")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def edge(seen: Seen, bound: float | str | None) -> float | None:
    """A bound, which may be a metric; all runs have the same band."""
    if bound not in (MIN, MAX):
        return bound
    return float(seen.series(f"{PREFIX}{bound}")[0]["values"][-1][1])


def points(seen: Seen, series: dict) -> tuple[list[float], list[float]]:
    """Seconds since the start, and values."""
    times, values = zip(*series["values"], strict=True)
    return [time - seen.start for time in times], [float(value) for value in values]


if __name__ == "__main__":
    main()
