"""The picture of a run: reward, accuracy, length with its band, and KL, step by step."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RAW, SHAPED, BAND = "#1f77b4", "#ff7f0e", "#2ca02c"


def draw_curves(
    path: Path,
    records: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    *,
    min_tokens: int,
    max_tokens: int,
    title: str,
) -> None:
    """Writes a PNG of the training records (lines) and the held-out evaluations (points)."""
    figure, ((reward, accuracy), (length, kl)) = plt.subplots(2, 2, figsize=(10, 6.5), sharex=True)
    steps = [record["step"] for record in records]

    def line(axes, name: str, label: str, **style):
        if records and name in records[0]:
            axes.plot(steps, [record[name] for record in records], label=label, **style)

    def points(axes, name: str, label: str, **style):
        at = [record["step"] for record in evaluations]
        axes.plot(at, [record[name] for record in evaluations], "o", label=label, **style)

    line(reward, "reward_mean", "raw", color=RAW)
    line(reward, "reward_shaped_mean", "shaped", color=SHAPED)
    reward.set_title("reward per response")

    line(accuracy, "accuracy", "training, sampled", color=RAW)
    points(accuracy, "accuracy_sampled", "held out, sampled", color=RAW)
    points(accuracy, "accuracy_greedy", "held out, greedy", color=SHAPED)
    accuracy.set_title("accuracy")
    accuracy.set_ylim(-0.03, 1.03)

    length.axhspan(min_tokens, max_tokens, color=BAND, alpha=0.15, label="band")
    line(length, "length_mean", "mean", color=RAW)
    line(length, "response_length_p95", "95th percentile", color=RAW, linestyle=":")
    points(length, "length_mean", "held out, mean", color=RAW)
    length.set_title("response length (tokens)")
    length.set_ylim(bottom=0)

    line(kl, "reference_kl", "to the reference", color=RAW)
    line(kl, "policy/ppo_kl", "to the sampling policy", color=SHAPED)
    kl.set_title("KL (nats per token)")

    for axes in (reward, accuracy, length, kl):
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (length, kl):
        axes.set_xlabel("step")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
