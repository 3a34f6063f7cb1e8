"""The command in a process of its own, and what it recorded."""

import json
import os
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


def records(path: Path) -> list[dict]:
    """What was recorded, without what is timed."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in lines]
