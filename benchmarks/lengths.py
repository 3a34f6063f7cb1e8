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
    """A point for each method, its mean accuracy against its mean length, with the seeds' range;
    and beside it the shortest of them, enlarged."""
    start = [run["before"] for runs in results.values() for run in runs]
    middle = {method: _means(runs) for method, runs in results.items()}
    shortest = min(x for x, _ in middle.values())
    figure, (whole, near) = plt.subplots(1, 2, figsize=(13, 6), width_ratios=(3, 2))
    for axes in (whole, near):
        for index, (method, runs) in enumerate(results.items()):
            (x, y), style = middle[method], {"color": f"C{index % 10}", "fmt": "osD"[index // 10]}
            low, high = np.min([_point(r) for r in runs], 0), np.max([_point(r) for r in runs], 0)
            ranges = {"xerr": [[x - low[0]], [high[0] - x]], "yerr": [[y - low[1]], [high[1] - y]]}
            axes.errorbar(x, y, **ranges, **style, elinewidth=0.8, label=method)
        axes.plot(*_means(start), "k*", markersize=12, label="before training")
        axes.set_xlabel("mean response length (tokens)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    whole.set_ylabel("accuracy, held out, sampled")
    whole.set_title("Length methods on three-digit addition, GRPO, 40 steps")
    near.set_title("the shortest, enlarged")
    near.set_xlim(shortest - 0.2, shortest + 0.3)
    near.set_ylim(0.92, 1.0)
    near.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _point(run: dict) -> tuple[float, float]:
    return run["length_mean"], run["accuracy_sampled"]


def _means(runs: list[dict]) -> tuple[float, float]:
    x, y = np.mean([_point(run) for run in runs], axis=0)
    return x, y


if __name__ == "__main__":
    main()
