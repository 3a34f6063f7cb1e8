"""Runs of the embedded task side by side, all from the same warm start for each seed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rljax import launch
from rljax.config import load_config, resolved
from rljax.folder import check_same_run

CONFIGS = Path(__file__).parent.parent / "configs"
COLUMNS = {  # of a table of runs: a held-out figure, and how it is shown
    "accuracy_greedy": "{:.3f}",
    "accuracy_sampled": "{:.3f}",
    "length_mean": "{:.1f}",
    "in_band_ratio": "{:.3f}",
}


def final_figures(root: Path, name: str, config: str, settings: list[str], seed: int) -> dict:
    """The held-out figures before and after a run, which is made if it is not there yet."""
    start = run_once(root / f"start-{seed}", ["addition.yaml", "steps=0"], seed)
    policy = f"models.policy={{fn: {start / 'policy'}, remat: full}}"
    settings = [config, policy, "warm_start=null", "tokenizer=null", *settings]
    folder = run_once(root / f"{name}-{seed}", settings, seed)
    summary = json.loads((folder / "summary.json").read_text())
    return summary["after"] | {"steps": summary["steps"], "before": summary["before"]}


def run_once(folder: Path, settings: list[str], seed: int) -> Path:
    """A run of a config of ``configs/`` with changes, which is made if it is not there yet."""
    config, *changes = settings
    changes = [*changes, f"seed={seed}", f"run_dir={folder}"]
    if (folder / "summary.json").exists():
        then = yaml.safe_load((folder / "config.yaml").read_text())
        check_same_run(then, resolved(load_config(CONFIGS / config, changes)), folder)
    elif launch.main([str(CONFIGS / config), *changes]):
        raise SystemExit(f"{folder}: the run failed")
    return folder


def spread(runs: list[dict[str, Any]], figure: str, show: str = "{:.3f}") -> str:
    """A figure over seeds: its mean, and the lowest and highest."""
    values = [run[figure] for run in runs]
    if len(runs) == 1:
        return show.format(values[0])
    low, mean, high = (show.format(f(values)) for f in (min, np.mean, max))
    return f"{mean} ({low} to {high})"
