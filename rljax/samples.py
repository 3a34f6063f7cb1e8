"""``rljax samples RUN``: what a run answered to held-out prompts, and what that earned.

It needs neither JAX nor an accelerator, and only reads: a run under way is not disturbed.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rljax.errors import UserError
from rljax.host.samples import read_samples, sampled_steps
from rljax.host.secrets import say
from rljax.host.terminal import Parser, Terminal, reader_left
from rljax.lengths import VERDICTS, length_figures

Row = dict[str, Any]
TRUNCATED = "truncated"  # beside the verdicts, as a response may be both
SHOWN = 10  # rows on a terminal
POLL_SECONDS = 1.0
TAIL_BYTES = 1 << 20  # of the events
ENDS = ("done", "stopped", "error")  # the last events of a start


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, 2 for anything that the user can put right, or 130 if
    it was interrupted."""
    parser = Parser(
        prog="rljax samples",
        description="Show what a run answered to held-out prompts: a table on a terminal, JSON "
        "lines elsewhere.",
        epilog="Example: rljax samples runs/0001 --wrong --verdict long",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="of the evaluation; by default the newest")
    which.add_argument(
        "--follow", action="store_true", help="and each new one, until the run has ended"
    )
    parser.add_argument(
        *("--number", "-n"),
        type=int,
        metavar="K",
        help=f"rows to show; by default {SHOWN} on a terminal, all elsewhere",
    )
    parser.add_argument("--wrong", action="store_true", help="only what is not correct")
    parser.add_argument("--verdict", choices=(*VERDICTS, TRUNCATED), help="only such lengths")
    drawn = parser.add_mutually_exclusive_group()
    drawn.add_argument("--greedy", action="store_true", help="only the most probable responses")
    drawn.add_argument("--sampled", action="store_true", help="only the others")
    parser.add_argument("--prompt", metavar="TEXT", help="only to prompts that have this in them")
    options = parser.parse_args(arguments)
    terminal = Terminal()
    wanted = options.wrong, options.verdict, options.greedy, options.sampled, options.prompt

    def show(step: int, rows: list[Row]) -> None:
        found = [row for row in rows if matches(row, *wanted)]
        shown = found[: options.number or (SHOWN if terminal.rich else None)]
        if terminal.rich and found:
            terminal.samples(shown, describe(step, rows, found, len(shown)))
        elif terminal.rich:
            terminal.say("none", describe(step, rows, found, 0))
        for row in () if terminal.rich else shown:
            terminal.emit("sample", row)

    try:
        if options.number is not None and options.number < 1:
            raise UserError(f"--number: at least 1, got {options.number}")
        if not options.run.is_dir():
            raise UserError(f"{options.run}: no such folder; name that of a run, as runs/0001")
        if options.follow:
            follow(options.run, show, terminal)
        else:
            step = chosen(options.run, options.step)
            show(step, read_samples(options.run, step))
    except UserError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        reader_left()
    return 0


def chosen(run: Path, step: int | None) -> int:
    """The step to show, by default the newest. Raises ``UserError`` if it has no table."""
    there = sampled_steps(run)
    if not there:
        raise UserError(f"{run} holds no samples: it has answered no held-out prompts yet")
    if step is None:
        return there[-1]
    if step not in there:
        raise UserError(f"{run} holds no samples of step {step}; of {', '.join(map(str, there))}")
    return step


def matches(
    row: Row, wrong: bool, verdict: str | None, greedy: bool, sampled: bool, prompt: str | None
) -> bool:
    """Whether a row is among those that are asked for."""
    return not (
        (wrong and row["correct"] is not False)
        or (verdict == TRUNCATED and not row["truncated"])
        or (verdict in VERDICTS and row["length_verdict"] != verdict)
        or (greedy and not row["greedy"])
        or (sampled and row["greedy"])
        or (prompt is not None and prompt not in row["prompt"])
    )


def describe(step: int, rows: list[Row], found: list[Row], shown: int) -> str:
    """The rows that were found among those of an evaluation, in a line."""
    count = f"{shown} of {len(found)}" if shown < len(found) else f"{len(found)}"
    text = f"step {step}: {count} of {len(rows)} responses"
    if not found:
        return text
    judged = [row["correct"] for row in found if row["correct"] is not None]
    verdicts = [row["length_verdict"] for row in found]
    lengths, cut = (np.array([row[name] for row in found]) for name in ("length_tokens", TRUNCATED))
    figures = length_figures(lengths, cut, np.ones(len(found), bool), 0, 0)
    parts = [f"{np.mean(judged):.1%} correct"] if judged else []
    parts.append(f"{figures['length_mean']:.1f} tokens (p95 {figures['response_length_p95']:.0f})")
    parts += [f"{verdicts.count(name) / len(found):.1%} {name}" for name in VERDICTS]
    return f"{text}; {', '.join(parts)}, {figures['truncated_ratio']:.1%} truncated"


def follow(run: Path, show: Callable[[int, list[Row]], None], terminal: Terminal) -> None:
    """Shows the newest table, and every new one as it comes, until the run has ended."""
    seen: set[int] = set(sampled_steps(run)[:-1])
    if not sampled_steps(run):
        terminal.say("waiting", f"waiting for the first evaluation of {run} …", run_dir=str(run))
    while True:
        end = ending(run)  # first, so that what was written before it is not missed
        for step in sampled_steps(run):
            if step in seen:
                continue
            try:
                rows = read_samples(run, step)
            except UserError:
                if end is not None:
                    raise
                continue  # not there as a whole yet, or removed by a start that writes it again
            show(step, rows)
            seen.add(step)
        if end is not None:
            terminal.say("ended", f"the run has ended: {end}", text=end)
            return
        time.sleep(POLL_SECONDS)


def ending(run: Path) -> str | None:
    """How the newest start of a run has ended, in words; None if it is under way."""
    events = _events(run / "events.jsonl")
    if not events:
        return None
    last = events[-1]
    if last.get("event") in ENDS:
        return last["event"] if last["event"] == "done" else f"{last['event']}: {last.get('text')}"
    start = next((event for event in reversed(events) if event.get("event") == "start"), {})
    if start.get("host") == socket.gethostname() and not _is_alive(start.get("pid")):
        return f"its process {start['pid']} is gone"
    return None


def _events(path: Path) -> list[dict[str, Any]]:
    """The last events of a run, none if the file is absent."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # cut short
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, TypeError, OverflowError):
        return True
    return True
