"""All three by their names, in a run that is stopped half-way and goes on."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import yaml

TINY = [
    "models.policy={fn: llama, layers: 2, width: 16, heads: 2, mlp_width: 32, rope_base: 100}",
    "steps=4",
    "data={train: {fn: addition_problems, count: 64}, eval: {fn: addition_problems, count: 8}, "
    "prompts_per_step: 4, max_prompt_tokens: 8}",
    "sampling={max_tokens: 12, group_size: 4}",
    "length={min_tokens: 4, max_tokens: 8}",
    "optimizer={policy: {learning_rate: 1.0e-3}, value: null}",
    "warm_start=null",
    "evaluation={prompts: 8}",
    "checkpoint={every_steps: 2, keep: 2}",
]
OURS = [
    "rewards={correct: brevity_match}",
    "shaping={length: {fn: smooth_band, step_tokens: 0.5, least_accuracy: 0}}",
    "algorithm=median_grpo",
]


def is_installed() -> bool:
    try:
        return bool(metadata.version("length-shaper-plugin"))
    except metadata.PackageNotFoundError:
        return False


def launch(run: Path) -> list[dict]:
    """Trains, and returns what was recorded of every step, but for what is timed."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "rljax.launch", *TINY, *OURS, f"run_dir={run}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in records]


@pytest.mark.skipif(not is_installed(), reason="the package is not installed: pip install -e .")
def test_a_run_that_names_them_goes_on_where_it_stopped(tmp_path):
    run = tmp_path / "run"
    whole = launch(run)
    assert all(np.isfinite(record["policy/loss"]) for record in whole)
    edges = [record["shaping/length/max_tokens"] for record in whole]
    assert edges == [11.5, 11.0, 10.5, 10.0]
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert written["algorithm"]["fn"] == "median_grpo"
    assert written["rewards"]["correct"]["half_tokens"] == 50.0
    assert written["shaping"]["length"]["knee_above"] == 10.0
    shutil.rmtree(run / "checkpoints" / "4")
    assert launch(run) == whole
