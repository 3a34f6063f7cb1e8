"""What a run says: a progress bar and tables on a terminal, JSON lines anywhere else; redacted."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rljax.host.metrics import Journal, json_text
from rljax.host.samples import REWARD
from rljax.host.secrets import redact, redacted

MARKS = {True: "✓", False: "✗", None: ""}  # of what is correct, or was not judged
CONTROLS = {code: 0x2400 + code for code in range(32)}  # to the pictures of them that Unicode has
CONTROLS |= dict.fromkeys(range(0x7F, 0xA0), "\N{SYMBOL FOR DELETE}")
NAME_WIDTH = 32  # of a table's first column, up to which its names stay whole
LINES_PER_PHASE = 10  # of progress, when the output is not a terminal


class Terminal:
    """Prints for a person if standard output is a terminal, else one JSON object per line."""

    def __init__(self, quiet: bool = False):
        """``quiet``: prints nothing, as another process of the run does."""
        self.console = Console(highlight=False, quiet=quiet)
        self.quiet = quiet
        self.rich = self.console.is_terminal and not quiet
        self.journal: Journal | None = None  # of a run, once it has a folder

    def say(self, event: str, text: str, /, **fields: Any) -> None:
        """One line of news: ``text`` for a person, ``event`` and ``fields`` for a machine."""
        self.note(event, text, **fields)
        if self.rich:
            self.console.print(redact(text), markup=False)
        else:
            self.emit(event, fields or {"text": text})

    def note(self, event: str, text: str, /, **fields: Any) -> None:
        """Into the journal only."""
        if self.journal is not None:
            self.journal.write(event, redacted(fields or {"text": text}))

    def close(self) -> None:
        """The journal, and whatever of a progress bar hides the cursor."""
        if self.journal is not None:
            self.journal.close()
            self.journal = None
        if self.rich:
            self.console.show_cursor(True)

    @contextlib.contextmanager
    def phase(self, name: str, steps: int, done: int) -> Iterator["PhaseBar"]:
        """A stretch of steps with a progress bar."""
        if not self.rich:
            yield PhaseBar(self, name, steps)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=steps, completed=done, figures="")
            yield PhaseBar(self, name, steps, progress, task)

    def before_after(self, before: dict[str, float | None], after: dict[str, float | None]) -> None:
        """Two evaluations; None is no number."""
        if not self.rich or not before | after:
            return
        table = Table(title="held-out prompts", title_justify="left")
        table.add_column("", overflow="fold")
        for heading in ("before", "after"):
            table.add_column(heading, justify="right")
        for name in before | after:
            found = (f.get(name) for f in (before, after))
            cells = ("" if value is None else f"{value:.2f}" for value in found)
            table.add_row(_literal(name), *cells)
        self.console.print(table)

    def figures(self, figures: dict[str, float], title: str) -> None:
        """Of one evaluation."""
        if not self.rich:
            return
        table = Table("", "", title=_literal(title), title_justify="left", show_header=False)
        for name, value in figures.items():
            table.add_row(_literal(name), f"{value:.3f}")
        self.console.print(table)

    def samples(self, samples: list[dict[str, Any]], title: str) -> None:
        """Rows of a table of samples: see ``rljax.host.samples``."""
        if not self.rich or not samples:
            return
        each = [name for name in samples[0] if name.startswith(REWARD)]
        rewards = {name: name.removeprefix(REWARD) for name in each if len(each) > 1}
        rewards |= {"reward_raw": "raw", "shaping": "shaping", "reward_shaped": "shaped"}
        table = Table(title=_literal(title), title_justify="left")
        table.add_column("prompt", overflow="fold")
        table.add_column("response", overflow="fold", ratio=1)
        table.add_column("")
        for heading in ("tokens", *rewards.values()):
            table.add_column(_literal(heading), justify="right")
        for s in samples:
            table.add_row(
                *(_literal(s["prompt"]), _literal(s["response"]), MARKS[s["correct"]]),
                _length(s),
                *("" if s[name] is None else f"{s[name]:.2f}" for name in rewards),
            )
        self.console.print(table)

    def table(self, title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """For a person only; numbers stand to the right."""
        if not self.rich:
            return
        table = Table(title=_literal(title), title_justify="left")
        rows = [list(map(_literal, row)) for row in rows]
        short = all(cell_len(row[0]) <= NAME_WIDTH for row in rows)
        for index, heading in enumerate(headings):
            number = all(re.fullmatch(r"[-+.\de%]*", row[index]) for row in rows)
            justify = "right" if number else "left"
            whole = index == 0 and short
            table.add_column(_literal(heading), justify=justify, overflow="fold", no_wrap=whole)
        for row in rows:
            table.add_row(*row)
        unbounded = self.console.options.update(max_width=10**6)
        if self.console.measure(table, options=unbounded).maximum > self.console.width:
            table.box, table.pad_edge = SIMPLE_HEAD, False  # no lines, so that there is room
        self.console.print(table)

    def emit_line(self, event: str, **fields: Any) -> None:
        """For a machine only."""
        if not self.rich:
            self.emit(event, fields)

    def emit(self, event: str, fields: dict[str, Any]) -> None:
        """A line for a machine."""
        if not self.quiet:
            print(json_text(redacted({"event": event, **fields})), file=sys.stdout, flush=True)


def reader_left() -> None:
    """Has what is still printed go nowhere, once whoever read it has seen enough, as ``head``."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """Of a command line, which a shell may have put secrets into."""

    def error(self, message: str) -> NoReturn:
        super().error(redact(message))


class PhaseBar:
    """The progress of one phase."""

    def __init__(self, terminal: Terminal, name: str, steps: int, progress=None, task=None):
        self._terminal, self._name, self._steps = terminal, name, steps
        self._progress, self._task = progress, task

    def step(self, done: int, figures: dict[str, float]) -> None:
        """Advances to ``done`` steps, with the figures that matter."""
        if self._progress is not None:
            text = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
            self._progress.update(self._task, completed=done, figures=text)
        elif done % max(self._steps // LINES_PER_PHASE, 1) == 0 or done == self._steps:
            rounded = {name: round(value, 4) for name, value in figures.items()}
            fields = {"phase": self._name, "step": done, "of": self._steps, **rounded}
            self._terminal.emit("step", fields)


def _length(sample: dict[str, Any]) -> str:
    """Such as "45 long", or "72 long, cut"."""
    words = [sample["length_verdict"]] if sample["length_verdict"] != "in band" else []
    words += ["cut"] if sample["truncated"] else []
    return f"{sample['length_tokens']} {', '.join(words)}".strip()


def _literal(text: str) -> str:
    """As a table shows it: no secrets, no markup, on one line, and nothing that a terminal obeys,
    which a response may hold."""
    return escape(redact(text)).replace("\n", "↵").translate(CONTROLS)
