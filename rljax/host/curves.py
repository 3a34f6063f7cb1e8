"""The picture of a run: what it earned or lost, how often it was right, lengths, and KL."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from rljax.host.secrets import redact

BLUE, ORANGE, GREEN = "#1f77b4", "#ff7f0e", "#2ca02c"


class Panel(NamedTuple):
    """Figures of the training's records, as lines, and of evaluations, as points: (name, label,
    color)."""

    title: str
    lines: tuple[tuple[str, str, str], ...]
    points: tuple[tuple[str, str, str], ...] = ()


LENGTH = Panel(
    "response length (tokens)",
    (("length_mean", "mean", BLUE), ("response_length_p95", "95th percentile", ORANGE)),
    (("length_mean", "held out, mean", BLUE),),
)
ANSWERS = (
    ("accuracy_sampled", "held out, sampled", BLUE),
    ("accuracy_greedy", "held out, greedy", ORANGE),
)
SAMPLING = (  # of a run that samples
    Panel(
        "reward per response",
        (("reward_mean", "raw", BLUE), ("reward_shaped_mean", "shaped", ORANGE)),
    ),
    Panel("accuracy", (("accuracy", "training, sampled", BLUE),), ANSWERS),
    LENGTH,
    Panel(
        "KL (nats per token)",
        (
            ("reference_kl", "to the reference", BLUE),
            ("policy/ppo_kl", "to the sampling policy", ORANGE),
            ("policy/divergence", "divergence from the teacher", GREEN),
        ),
    ),
)
GIVEN = (  # of a run on rows that are given
    Panel(
        "loss",
        (
            ("policy/loss", "training", BLUE),
            ("reward/loss", "training", BLUE),
            ("policy/nll", "nats per token", ORANGE),
        ),
        (
            ("heldout/loss", "held out", BLUE),
            ("heldout/policy/nll", "held out, nats per token", ORANGE),
        ),
    ),
    Panel(
        "accuracy",
        (("rewards/accuracies", "pairs in the right order", GREEN),),
        (("heldout/rewards/accuracies", "held-out pairs", GREEN), *ANSWERS),
    ),
    Panel(
        "rewards of given responses",
        (
            ("rewards/chosen", "chosen", BLUE),
            ("rewards/rejected", "rejected", ORANGE),
            ("rewards/margins", "margin", GREEN),
        ),
        (("heldout/rewards/margins", "held out, margin", GREEN),),
    ),
    LENGTH,
)


def draw_curves(
    path: Path,
    records: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    *,
    title: str,
    min_tokens: int | None = None,
    max_tokens: int | None = None,
) -> None:
    """Writes a PNG of the training records (lines) and the held-out evaluations (points)."""
    sampled = any("reward_mean" in record for record in records)
    panels = [
        panel
        for panel in (SAMPLING if sampled or not records else GIVEN)
        if _told(panel.lines, records) or _told(panel.points, evaluations)
    ]
    columns = min(len(panels), 2) or 1
    rows = -(-len(panels) // columns) or 1
    figure, grid = plt.subplots(
        rows, columns, figsize=(5 * columns, 0.4 + 3.05 * rows), squeeze=False
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel, records, evaluations)
        if panel is LENGTH:
            if max_tokens is not None:
                axes.axhspan(min_tokens, max_tokens, color=GREEN, alpha=0.15, label="band")
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        if panel.title == "accuracy":
            axes.set_ylim(-0.03, 1.03)
        axes.set_title(panel.title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(redact(title))
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _told(figures, records) -> bool:
    return any(name in record for name, _, _ in figures for record in records)


def _draw(axes, panel: Panel, records, evaluations) -> None:
    for name, label, color in panel.lines:
        have = [record for record in records if name in record]
        if have:
            at = [record["step"] for record in have]
            axes.plot(at, _numbers(have, name), label=label, color=color)
    for name, label, color in panel.points:
        have = [record for record in evaluations if name in record]
        if have:
            at = [record["step"] for record in have]
            axes.plot(at, _numbers(have, name), "o", label=label, color=color)


def _numbers(records, name: str) -> list[float]:
    """Where there is none, a gap in the line."""
    return [math.nan if record[name] is None else record[name] for record in records]
