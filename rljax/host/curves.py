"""The picture of a run: what it earned or lost, how often it was right, lengths, and KL."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from rljax.host.secrets import redact

# Of Okabe and Ito, which are told apart by those who see colors otherwise.
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
LONGEST_TITLE = 60  # characters


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
    figure, grid_axes = grid(len(panels), columns=2)
    for axes, panel in zip(grid_axes, panels, strict=False):
        _draw(axes, panel, records, evaluations)
        if panel is LENGTH:
            if max_tokens is not None:
                shade_band(axes, min_tokens, max_tokens)
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        if panel.title == "accuracy":
            axes.set_ylim(-0.03, 1.03)
        dress(axes, panel.title)
    save(figure, path, title)


def grid(count: int, *, columns: int = 1, width: float = 5, height: float = 3.05):
    """A figure with ``count`` panels of so many inches, and these."""
    columns = min(count, columns) or 1
    rows = -(-count // columns) or 1
    figure, panels = plt.subplots(
        rows, columns, figsize=(width * columns, 0.4 + height * rows), squeeze=False
    )
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    return figure, list(panels.flat)


def shade_band(axes, min_tokens: float, max_tokens: float, label: str = "band") -> None:
    """Where lengths are in the band."""
    axes.axhspan(min_tokens, max_tokens, color=GREEN, alpha=0.15, linewidth=0, label=label)


def dress(axes, title: str) -> None:
    """What every panel has."""
    axes.set_title(literal(title))
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def literal(text: str) -> str:
    """A text that shows as it is, if it is not too long: no secrets, no formula, no name that
    legends pass over."""
    shown = redact(text)
    shown = shown if len(shown) <= LONGEST_TITLE else f"{shown[: LONGEST_TITLE - 1]}…"
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def save(figure, path: Path, title: str = "") -> None:
    """Writes a figure as a PNG, and lets go of it. Raises ``OSError``."""
    if title:
        figure.suptitle(literal(title), y=1 - 0.1 / figure.get_figheight())
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
