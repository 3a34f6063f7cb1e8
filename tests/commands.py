"""The command in processes of its own, and what it recorded."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def process(run_dir: Path, *settings: str) -> subprocess.Popen:
    """Training, on one device."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "rljax.launch", *settings, f"run_dir={run_dir}"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def pod(
    run_dir: Path, *settings: str, last: str | None = None, host: str = "localhost"
) -> list[subprocess.Popen]:
    """Training on two processes of two simulated devices each; the last may have a setting of its
    own. ``host``: by what name they reach the first."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"{host}:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    command = [sys.executable, "-m", "rljax.launch", *settings, f"run_dir={run_dir}"]
    command += ["--coordinator", address, "--processes", "2", "--process"]
    return [
        subprocess.Popen(
            [*command, str(index), *([last] if index and last else [])],
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def tables(run: Path) -> dict[str, bytes]:
    """The tables of samples of a run."""
    return {path.name: path.read_bytes() for path in (run / "samples").iterdir()}


def records(path: Path) -> list[dict]:
    """What was recorded, without what is timed."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in lines]
