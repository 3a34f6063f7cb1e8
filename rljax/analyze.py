"""``rljax analyze --log-dir DIR [--log-dir DIR2 ...] [--metric a,b,c]``: runs side by side.

Pictures, a report to open in a browser and a summary; a verdict by ``--check``, and by
``--compare`` what differs. Nothing is computed on an accelerator, and JAX is not imported.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rljax.analysis import (
    Comparison,
    Finding,
    Run,
    Window,
    compare,
    find_runs,
    is_healthy,
    judged,
    last_window,
    read_runs,
    with_threshold,
)
from rljax.analysis.compare import Difference
from rljax.analysis.figures import chosen
from rljax.analysis.reading import Band
from rljax.analysis.summary import Row, number_text, summary
from rljax.errors import UserError
from rljax.health import SIGNS, Sign
from rljax.host.files import write_whole
from rljax.host.secrets import redact, say
from rljax.host.terminal import Parser, Terminal
from rljax.lengths import check_band

OUT = "analysis"  # the folder that pictures and report go to
REPORT, SHEET = "report.html", "sheet.png"


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 1 if ``--check`` finds a run unhealthy, or 2 for
    anything that the user can put right."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        return analyze(options)
    except UserError as error:
        say(f"error: {error}")
        return 2


class Analysis(NamedTuple):
    """Of runs; windows and findings are of each."""

    runs: list[Run]
    names: list[str]  # of the figures to show
    signs: Sequence[Sign]
    windows: list[Window]
    findings: list[list[Finding]]
    comparisons: list[Comparison]  # of each run but the first with it, if that is asked for


def analyze(options: argparse.Namespace) -> int:
    """Does what the command line asks for."""
    if not 0 <= options.smooth < 1:
        raise UserError(
            f"--smooth: a weight from 0 up to but not 1 is needed, got {options.smooth}"
        )
    if not 0 < options.last <= 1:
        raise UserError(f"--last: a share above 0 and up to 1 is needed, got {options.last}")
    runs, all_read = _read(options)
    found = _analysis(options, runs)
    terminal = Terminal()
    only_asked = options.check or options.compare
    out = options.out or (None if only_asked else Path(OUT))
    if out is not None:
        _make(out)
    for run, window, findings in zip(runs, found.windows, found.findings, strict=True):
        if not only_asked:
            _tell_summary(terminal, run, summary(run, found.names, window), window)
        if options.check:
            _tell_findings(terminal, run, window, findings)
    for run, comparison in zip(runs[1:], found.comparisons, strict=False):
        _tell_comparison(terminal, runs[0], run, comparison)
    for run, findings in zip(runs, found.findings, strict=True):
        _tell_verdict(terminal, run, findings)
    if out is not None:
        _write(out, found, options, terminal)
    return 0 if not options.check or (all_read and all(map(is_healthy, found.findings))) else 1


def _read(options: argparse.Namespace) -> tuple[list[Run], bool]:
    """The runs that have records, and whether these are all."""
    folders = [*options.runs, *options.log_dir]
    if not folders:
        raise UserError("which runs? name their folder: rljax analyze --log-dir runs/0001")
    found = read_runs(find_runs(folders), _band(options))
    for run in found:
        if not run.names:
            say(f"warning: {run.folder} has no record that can be read; it is left out")
        for note in run.notes:
            say(f"warning: {run.label}: {note}")
    runs = [run._replace(label=redact(run.label)) for run in found if run.names]
    if not runs:
        raise UserError(f"no record can be read in {', '.join(str(run.folder) for run in found)}")
    return runs, len(runs) == len(found)


def _analysis(options: argparse.Namespace, runs: list[Run]) -> Analysis:
    if options.compare and len(runs) < 2:
        raise UserError(f"--compare needs two runs with records, got {len(runs)}")
    there = set().union(*(run.metrics.keys() for run in runs))
    signs: Sequence[Sign] = SIGNS
    for threshold in options.threshold:
        signs = with_threshold(signs, threshold, there)
    windows = [last_window(run.steps, options.last) for run in runs]
    pairs = list(zip(runs, windows, strict=True))
    return Analysis(
        runs=runs,
        names=chosen(_listed(options.metric), runs),
        signs=signs,
        windows=windows,
        findings=[judged(run, window, signs) for run, window in pairs],
        comparisons=[
            compare(runs[0], run, (windows[0], window))
            for run, window in (pairs[1:] if options.compare else ())
        ],
    )


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: cannot make the folder {out}: {error.strerror}") from error


def _write(out: Path, found: Analysis, options: argparse.Namespace, terminal: Terminal) -> None:
    """Pictures and report."""
    # Only here: a verdict needs none of what draws and shows, and is there sooner.
    from rljax.analysis.contents import contents
    from rljax.analysis.plots import draw_each, draw_sheet
    from rljax.analysis.report import report_page

    shown = found.names, found.runs, found.signs, options.smooth
    report = out / REPORT
    try:
        if options.sheet:
            pictures = [out / SHEET]
            draw_sheet(out / SHEET, *shown)
        else:
            pictures = draw_each(out, *shown)
        write_whole(report, report_page(contents(**found._asdict(), weight=options.smooth)))
    except OSError as error:
        raise UserError(f"--out: cannot write to {out}: {error.strerror or error}") from error
    drawn = str(pictures[0]) if options.sheet else f"{len(pictures)} pictures beside it"
    text = f"written: {report}, and {drawn}"
    terminal.say("written", text, report=str(report), pictures=[str(path) for path in pictures])


def _parser() -> Parser:
    parser = Parser(
        prog="rljax analyze",
        usage="%(prog)s [RUN ...] [--log-dir DIR] [--metric a,b,c] [--smooth W] [--out DIR] "
        "[--sheet] [--check] [--compare] [--last SHARE] [--threshold METRIC=LOW:HIGH]",
        description="Show recorded runs side by side, say whether they are healthy, and how they "
        "differ. A folder is that of a run, or one that runs lie in, or one with TensorBoard's "
        "event files.",
        epilog="Example: rljax analyze --log-dir runs/shaped --log-dir runs/unshaped",
    )
    add = parser.add_argument
    add("runs", nargs="*", type=Path, metavar="RUN", help="the same as --log-dir")
    add("--log-dir", action="append", default=[], type=Path, metavar="DIR", help="with records")
    add(
        *("--metric",),
        action="append",
        default=[],
        metavar="a,b,c",
        help="what to show, rewards/* for all that fit; default: those that matter",
    )
    add(
        "--smooth",
        type=float,
        default=0.6,
        metavar="W",
        help="weight of the moving average, as TensorBoard's; 0 for none (default: %(default)s)",
    )
    add("--out", type=Path, metavar="DIR", help=f"for pictures and report (default: {OUT})")
    add("--sheet", action="store_true", help="one picture of all metrics instead of one for each")
    add(
        "--check",
        action="store_true",
        help="say whether the runs are healthy, by the exit code too: 0, or 1 if one is not; "
        "writes files only with --out, and so does --compare",
    )
    add("--compare", action="store_true", help="say how the others differ from the first run")
    add(
        "--last",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of the steps, that verdicts and comparisons are made by, but at least five steps "
        "(default: %(default)s)",
    )
    add("--min-tokens", type=int, help="of the length band, in place of that of the runs' configs")
    add("--max-tokens", type=int)
    add(
        "--threshold",
        action="append",
        default=[],
        metavar="METRIC=LOW:HIGH",
        help="within which a metric is healthy, such as reward_shaping_ratio=0:0.2",
    )
    return parser


def _listed(texts: Sequence[str]) -> list[str]:
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def _band(options: argparse.Namespace) -> Band | None:
    edges = options.min_tokens, options.max_tokens
    if edges == (None, None):
        return None
    if None in edges:
        raise UserError("--min-tokens and --max-tokens belong together")
    check_band(*edges)
    return Band(*edges)


def _tell_summary(terminal: Terminal, run: Run, rows: Sequence[Row], window: Window) -> None:
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


def _tell_findings(
    terminal: Terminal, run: Run, window: Window, findings: Sequence[Finding]
) -> None:
    for finding in findings:
        terminal.emit_line("sign", run=run.label, **finding._asdict())
    title = f"{run.label}: the mean of steps {window.first} to {window.last}"
    shown = [
        (found.name, number_text(found.value), found.bounds, found.verdict, found.meaning)
        for found in findings
    ]
    terminal.table(title, ("sign", "value", "healthy", "verdict", ""), shown)


def _tell_comparison(terminal: Terminal, first: Run, second: Run, found: Comparison) -> None:
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


def _tell_verdict(terminal: Terminal, run: Run, findings: Sequence[Finding]) -> None:
    healthy = is_healthy(findings)
    wrong = [f"{found.name}: {found.meaning}" for found in findings if not found.sound]
    if not healthy:
        wrong = wrong or ["nothing was measured that would tell"]
    text = f"{run.label}: {'healthy' if healthy else 'unhealthy: ' + '; '.join(wrong)}"
    terminal.say("verdict", text, run=run.label, healthy=healthy, wrong=wrong)
