"""``python -m benchmarks.lengths``: length methods on the embedded task, accuracy against length.

Each is the one stage of ``configs/grpo.yaml``'s shaping, with settings for responses of some thirty
tokens. Writes a picture, and prints the figures over seeds as a table. The runs are kept, so that
the command goes on where it was stopped.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from benchmarks.compare import final_figures, spread

METHODS = {
    "none": {},
    "length_band": {"weight": 1.0, "scale_tokens": 15},
    "soft_overlong": {"buffer_tokens": 48},
    "missing_eos": {},
    "overlong_filter": {},
    "kimi": {},
    "cosine": {},
    "l1_exact": {"target": 27, "alpha": 0.02},
    "l1_max": {"target": 36, "alpha": 0.02},
    "laser": {"target": 30},
    "o1_pruner": {"reference_tokens": 33, "reference_accuracy": 0.5},
    "arora_zanette": {"alpha": 0.3},
    "alp": {"beta": 0.01},
    "grpo_lead": {"alpha": 0.3},
    "shorter_better": {"beta": 0.03},
    "drpo": {"temperature": 0.3},
    "laser_d": {},
    "a_dlp": {"target_accuracy": 0.8, "weight": 0.005, "max_weight": 0.02},
    "hapo": {},
}
HISTORY = ["data.train.count=64"]  # prompts come back within the run, as hapo needs it


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lengths", description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help="by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/lengths"), help="where they lie")
    parser.add_argument("--picture", type=Path, default=Path("lengths.png"))
    options = parser.parse_args()
    results = {}
    for method in options.methods:
        node = json.dumps({"fn": method, **METHODS[method]})
        shaping = "shaping=off" if method == "none" else f"shaping={{length: {node}}}"
        settings = [shaping, *(HISTORY if method == "hapo" else [])]
        results[method] = [
            final_figures(options.runs, method, "grpo.yaml", settings, seed)
            for seed in options.seeds
        ]
    print("| method | settings | greedy | sampled | tokens |\n|---|---|---|---|---|")
    for method, runs in results.items():
        settings = ", ".join(f"{name} {value}" for name, value in METHODS[method].items())
        figures = {
            "accuracy_greedy": "{:.3f}",
            "accuracy_sampled": "{:.3f}",
            "length_mean": "{:.1f}",
        }
        cells = [spread(runs, figure, show) for figure, show in figures.items()]
        print(f"| {method} | {settings} | {' | '.join(cells)} |")
    draw(options.picture, results)


def draw(path: Path, results: dict[str, list[dict]]) -> None:
    """A point for each method: its mean accuracy against its mean length, with the seeds' range."""
    figure, axes = plt.subplots(figsize=(9, 6))
    start = [run["before"] for runs in results.values() for run in runs]
    colours = plt.get_cmap("tab20").colors
    for colour, (method, runs) in zip(colours, results.items(), strict=False):
        tokens = np.array([run["length_mean"] for run in runs])
        accuracy = np.array([run["accuracy_sampled"] for run in runs])
        x, y = tokens.mean(), accuracy.mean()
        axes.errorbar(
            x,
            y,
            xerr=[[x - tokens.min()], [tokens.max() - x]],
            yerr=[[y - accuracy.min()], [accuracy.max() - y]],
            fmt="o",
            color=colour,
            elinewidth=0.8,
            label=method,
        )
    axes.plot(
        np.mean([s["length_mean"] for s in start]),
        np.mean([s["accuracy_sampled"] for s in start]),
        "k*",
        markersize=12,
        label="before training",
    )
    axes.set_xlabel("mean response length (tokens), held out, sampled")
    axes.set_ylabel("accuracy, held out, sampled")
    axes.set_title("Length methods on three-digit addition, GRPO, 40 steps")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
