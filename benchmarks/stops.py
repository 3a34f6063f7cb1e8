"""``python -m benchmarks.stops``: SIGTERM at every phase of the embedded task.

One run is asked to stop again and again, each time one phase further on, and gone on with. The
table says how long it took to end, with which code, and that no step was lost.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import PATIENCE_SECONDS, count_lines, head, log, row, running, until
from rljax.host.steps import steps_in

LIMIT_SECONDS = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stops", description=__doc__)
    parser.add_argument("settings", nargs="*", help="of the run, as rljax.launch takes them")
    settings = parser.parse_args().settings
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"  # it is to compile
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        stopped(Path("run"), settings)


def stopped(run: Path, settings: list[str]) -> None:
    """The table. Exits with 1 if the run took too long, or lost a step."""
    wrong = 0
    head("SIGTERM while it", "seconds", "code", "recorded", "saved")
    for name, reached in PHASES.items():
        with running(run, settings) as (process,):
            until(reached(run), [process])
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            code = process.wait(PATIENCE_SECONDS)
            seconds = time.monotonic() - began
        part = run if steps_in(run / "checkpoints") else run / "warm_start"
        recorded = count_lines(part / "metrics.jsonl")
        saved = max(steps_in(part / "checkpoints"), default=None)
        kept = "nothing" if saved is None else f"{saved}, of {part.name}"
        row(name, f"{seconds:.1f}", code, recorded, kept)
        late = seconds > LIMIT_SECONDS
        wrong += late or code not in CODES.get(name, (75,)) or recorded > (saved or 0)
    with running(run, settings) as (process,):
        code = process.wait(PATIENCE_SECONDS)
    row("is left alone", "", code, count_lines(run / "metrics.jsonl"), "to its end")
    if wrong or code:
        sys.exit(f"{wrong} phase(s) as they should not be; {log(run, 0, 'err').read_text()}")


def said(run: Path, text: str, seconds: float) -> Callable[[], bool]:
    """Some time after it has said something."""

    def reached() -> bool:
        there = text in log(run, 0, "out").read_text()
        if there:
            time.sleep(seconds)
        return there

    return reached


def recorded(path: Path, steps: int) -> Callable[[], bool]:
    return lambda: count_lines(path) >= steps


def waited(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


# In the order in which a run comes to them.
PHASES: dict[str, Callable[[Path], Callable[[], bool]]] = {
    "imports its libraries": lambda run: waited(0.5),
    "compiles the warm start": lambda run: said(run, '"program": "warm_start"', 0.2),
    "does the warm start": lambda run: recorded(run / "warm_start/metrics.jsonl", 300),
    "saves in the warm start": lambda run: (
        lambda: any((run / "warm_start/checkpoints").glob("*tmp*"))
    ),
    "compiles the evaluation": lambda run: said(run, '"program": "evaluation"', 0.2),
    "evaluates": lambda run: said(run, '"event": "compiled", "program": "evaluation"', 0.05),
    "compiles the step": lambda run: said(run, '"program": "train"', 0.5),
    "trains": lambda run: recorded(run / "metrics.jsonl", 5),
    "saves": lambda run: lambda: any((run / "checkpoints").glob("*tmp*")),
    "exports, in the end": lambda run: lambda: (run / "policy").exists(),
}


CODES = {  # where another than 75 may be
    "imports its libraries": (-signal.SIGTERM,),
    "exports, in the end": (75, 0),  # it may be done before it is broken off
}


if __name__ == "__main__":
    main()
