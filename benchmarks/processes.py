"""Runs in processes of their own: started, watched, ended, and what they recorded."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 600


def start(
    folder: Path, settings: Sequence[str], processes: int = 1, devices: int = 1
) -> list[subprocess.Popen]:
    """A run of so many processes with so many simulated devices each; they write to ``log``."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    command = [sys.executable, "-m", "rljax.launch", *settings, f"run_dir={folder}"]
    several = ["--coordinator", address, "--processes", str(processes), "--process"]
    return [
        subprocess.Popen(
            [*command, *([*several, str(index)] if processes > 1 else [])],
            env=environment,
            stdout=log(folder, index, "out").open("w"),
            stderr=log(folder, index, "err").open("w"),
        )
        for index in range(processes)
    ]


@contextlib.contextmanager
def running(
    folder: Path, settings: Sequence[str], processes: int = 1, devices: int = 1
) -> Iterator[list[subprocess.Popen]]:
    """Ended, whatever becomes of them."""
    started = start(folder, settings, processes, devices)
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def finish(folder: Path, settings: Sequence[str], processes: int = 1, devices: int = 1) -> None:
    """A run to its end."""
    with running(folder, settings, processes, devices) as started:
        codes = [process.wait(PATIENCE_SECONDS) for process in started]
    if any(codes):
        sys.exit(f"{folder}: codes {codes}; {log(folder, 0, 'err').read_text()}")


def until(true: Callable[[], bool], processes: list[subprocess.Popen]) -> None:
    """Waits, as long as all of them run."""
    while not true():
        if any(process.poll() is not None for process in processes):
            sys.exit("a process ended before it could be ended")
        time.sleep(0.002)


def records(path: Path) -> list[dict]:
    """What was recorded, without what is timed."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def log(folder: Path, index: int, kind: str) -> Path:
    """What a process printed, ``kind`` being out or err."""
    return Path(f"{folder.name}.{kind}{index}")


def answer(module: str, *arguments: str, devices: int = 1) -> dict[str, Any]:
    """The JSON in the last line of a module that is run on so many simulated devices."""
    environment = os.environ | {
        "NPROC": str(2 * devices),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-m", module, *arguments]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(command)}: code {run.returncode}; {run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def head(*cells: str) -> None:
    """The head of a table in Markdown."""
    print()
    row(*cells)
    row(*("---",) * len(cells))


def row(*cells: Any) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
