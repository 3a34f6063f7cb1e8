"""Pictures of runs side by side: a PNG for each figure, or one sheet of all of them."""

import re
from collections.abc import Sequence
from pathlib import Path

from rljax.analysis.figures import about, bounds, held_out, is_length, is_share
from rljax.analysis.reading import Run
from rljax.analysis.series import smoothed
from rljax.health import Sign
from rljax.host.curves import BLUE, GREEN, ORANGE, dress, grid, literal, save, shade_band

# Of Okabe and Ito, told apart by those who see colors otherwise; dashes tell more runs apart.
COLORS = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("-", "--", ":", "-.")
LEAST_TO_SMOOTH = 10  # steps; fewer are drawn as they are
FILE_CHARACTERS = 80


def draw_each(
    folder: Path, names: Sequence[str], runs: Sequence[Run], signs: Sequence[Sign], weight: float
) -> list[Path]:
    """Writes a PNG for each figure. Raises ``OSError``."""
    paths = [folder / f"{stem}.png" for stem in file_stems(names)]
    for path, name in zip(paths, names, strict=True):
        figure, (axes,) = grid(1, width=7.5, height=4.2)
        draw(axes, name, runs, signs, weight)
        save(figure, path)
    return paths


def draw_sheet(
    path: Path, names: Sequence[str], runs: Sequence[Run], signs: Sequence[Sign], weight: float
) -> None:
    """Writes one PNG with a panel for each figure. Raises ``OSError``."""
    figure, panels = grid(len(names), columns=3)
    for axes, name in zip(panels, names, strict=False):
        draw(axes, name, runs, signs, weight)
    save(figure, path, " against ".join(run.label for run in runs) if len(runs) < 4 else "")


def draw(axes, name: str, runs: Sequence[Run], signs: Sequence[Sign], weight: float) -> None:
    """A figure of all runs: as recorded, faint, the line that it follows, the evaluations as
    points, the band where it is a length, and the bounds within which it is healthy."""
    bands = {run.band for run in runs if run.band is not None}
    for number, band in enumerate(sorted(bands) if is_length(name) else ()):
        shade_band(axes, *band, label="" if number else "band")
    for bound in bounds(name, signs):
        axes.axhline(bound, color="#777777", linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    for number, run in enumerate(runs):
        color, dash = COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]
        series, points, label = run.metrics.get(name), held_out(run, name), literal(run.label)
        if series is not None:
            short = len(series.steps) < LEAST_TO_SMOOTH
            line = series.values if short else smoothed(series.values, weight)
            if not short and weight:
                axes.plot(*series, color=color, alpha=0.25, linewidth=1)
            mark = "." if len(series.steps) == 1 else None
            axes.plot(series.steps, line, dash, color=color, label=label, marker=mark)
        if points is not None:
            label = f"{label}, held out" if series is None else None
            axes.plot(
                *points,
                "o" if series is not None else "o:",
                color=color,
                markeredgecolor="white",
                label=label,
            )
    if is_length(name):
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    if is_share(name):
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.03), min(max(high, 0.05), 1.03))
    unit, _ = about(name)
    dress(axes, f"{name} ({unit})" if unit else name)


def file_stems(names: Sequence[str]) -> list[str]:
    """Names of figures as those of files, no two alike.

    >>> file_stems(["policy/loss", "policy.loss", "../a"])
    ['policy.loss', 'policy.loss-2', '_.a']
    """
    found: list[str] = []
    for name in names:
        stem = re.sub(r"[^\w.@-]+", "_", name.replace("/", ".").lower())[:FILE_CHARACTERS]
        stem = re.sub(r"^\.+", "_.", stem)
        again = sum(other == stem or other.startswith(f"{stem}-") for other in found)
        found.append(f"{stem}-{again + 1}" if again else stem)
    return found
