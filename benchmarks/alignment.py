"""``python -m benchmarks.alignment``: from demonstrations to aligned policies, over seeds.

The commands of docs/alignment.md on the embedded task: SFT, responses sampled from it and judged,
then DPO, KTO, a reward model, PPO with that, and distillation. The runs are kept, so that the
command goes on where it was stopped.
"""

import argparse
import contextlib
import json
from pathlib import Path

from benchmarks.compare import COLUMNS, run_once, spread
from rljax import eval as evaluation

SAMPLE = [
    "data.eval={fn: addition_problems, count: 2000, heldout: false}",
    "evaluation={prompts: 2000, samples_per_prompt: 8}",
]
# A run's name, its config, and what is changed in it.
STAGES = {
    "sft": ("sft.yaml", []),
    "dpo": ("dpo.yaml", []),
    "kto": ("kto.yaml", []),
    "reward_model": ("reward_model.yaml", []),
    "ppo_reward_model": ("ppo_reward_model.yaml", []),
    "distill": ("distill.yaml", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/alignment"))
    options = parser.parse_args()
    found: dict[str, list[dict]] = {name: [] for name in STAGES}
    for seed in options.seeds:
        folder = options.folder / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(folder):
            for name, (config, changes) in STAGES.items():
                if name == "dpo":
                    _sample()
                run = run_once(Path("runs") / name, [config, *changes], seed)
                found[name].append(json.loads((run / "summary.json").read_text()))
    header = ["run", "steps", *COLUMNS]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name, summaries in found.items():
        after = [summary["after"] for summary in summaries]
        if name == "reward_model":
            order = spread(after, "heldout/rewards/accuracies")
            print(f"| {name} | {summaries[0]['steps']} | held-out pairs in order: {order} | | | |")
            continue
        cells = [spread(after, figure, show) for figure, show in COLUMNS.items()]
        print(f"| {' | '.join([name, str(summaries[0]['steps']), *cells])} |")


def _sample() -> None:
    if not Path("evals/sft/figures.json").exists():
        evaluation.evaluate(Path("runs/sft"), SAMPLE, step=None, best=False, out=Path("evals/sft"))


if __name__ == "__main__":
    main()
