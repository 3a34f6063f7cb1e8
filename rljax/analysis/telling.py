"""What is told of runs in the terminal: tables for a person, a line of JSON each for a machine."""

from collections.abc import Sequence

from rljax.analysis.compare import Comparison, Difference
from rljax.analysis.reading import Run
from rljax.analysis.series import Window
from rljax.analysis.summary import Row, number_text
from rljax.analysis.verdict import Finding, is_healthy
from rljax.host.terminal import Terminal


def tell_summary(terminal: Terminal, run: Run, rows: Sequence[Row], window: Window) -> None:
    """Where the figures of a run began, and where they stand."""
    for row in rows:
        terminal.emit_line("metric", run=run.label, **row._asdict())
    heads = ("", "first", "last", "best", "at step", "held out: before", "after")
    shown = [
        (
            *(row.metric, number_text(row.first), number_text(row.last), number_text(row.best)),
            "" if row.best_step is None else str(row.best_step),
            *(number_text(row.before), number_text(row.after)),
        )
        for row in rows
    ]
    title = f"{run.label}: last is the mean of steps {window.first} to {window.last}"
    terminal.table(title, heads, shown)


def tell_findings(
    terminal: Terminal, run: Run, window: Window, findings: Sequence[Finding]
) -> None:
    """The signs of a run, and what each says of it."""
    for finding in findings:
        terminal.emit_line("sign", run=run.label, **finding._asdict())
    title = f"{run.label}: the mean of steps {window.first} to {window.last}"
    shown = [
        (found.name, number_text(found.value), found.bounds, found.verdict, found.meaning)
        for found in findings
    ]
    terminal.table(title, ("sign", "value", "healthy", "verdict", ""), shown)


def tell_comparison(terminal: Terminal, first: Run, second: Run, found: Comparison) -> None:
    """How a run differs from the first."""
    both = {"first": first.label, "second": second.label}
    for one in found.metrics:
        fields = {"difference": one.difference, **one._asdict()}
        means = {"mean_first": fields.pop("first"), "mean_second": fields.pop("second")}
        terminal.emit_line("difference", **both, **fields, **means)
    for key, *values in found.config:
        fields = dict(zip(("value_first", "value_second"), values, strict=True))
        terminal.emit_line("setting", **both, key=key, **fields)
    shown = [
        (
            *(one.name, number_text(one.first), number_text(one.second)),
            f"{one.difference:+.4g}",
            "" if one.relative is None else f"{one.relative:+.1%}",
            _noise(one),
        )
        for one in found.metrics
    ]
    heads = ("metric", first.label, second.label, "change", "relative", "")
    terminal.table(f"{second.label} against {first.label}", heads, shown)
    if found.config:
        terminal.table("settings", ("", first.label, second.label), found.config)
    if found.same:
        text = f"{second.label} and {first.label}: all that they recorded is identical, bit by bit"
        terminal.say("identical", text, **both)
    for title, names in (
        (f"identical at every step, {len(found.identical)} metrics", found.identical),
        (f"recorded by {first.label} only", found.only_first),
        (f"recorded by {second.label} only", found.only_second),
    ):
        if names:
            terminal.say("metrics", f"{title}: {', '.join(names)}", **both, what=title, names=names)


def _noise(difference: Difference) -> str:
    if difference.p_value is None:
        return "too few steps"
    return "beyond noise" if difference.beyond_noise else "within noise"


def tell_verdict(terminal: Terminal, run: Run, findings: Sequence[Finding]) -> None:
    """Whether a run is healthy, and what is wrong if it is not: one line."""
    healthy = is_healthy(findings)
    wrong = [f"{found.name}: {found.meaning}" for found in findings if not found.sound]
    if not healthy:
        wrong = wrong or ["nothing was measured that would tell"]
    text = f"{run.label}: {'healthy' if healthy else 'unhealthy: ' + '; '.join(wrong)}"
    terminal.say("verdict", text, run=run.label, healthy=healthy, wrong=wrong)
