"""``python -m benchmarks.recipes``: every recipe on the embedded task, over seeds, as a table.

Each recipe is its own file in ``configs/``. The runs are kept, so that the command goes on where it
was stopped.
"""

import argparse
from pathlib import Path

from benchmarks.compare import COLUMNS, CONFIGS, final_figures, spread
from rljax.config import load_config


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument(
        "recipes", nargs="*", help="by default every file of configs/ that needs no run before it"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"), help="where they lie")
    options = parser.parse_args()
    recipes = options.recipes or [
        path.stem
        for path in sorted(CONFIGS.glob("*.yaml"))
        if load_config(path, []).warm_start is not None  # begins with nothing
    ]
    rows = []
    for recipe in recipes:
        runs = [
            final_figures(options.runs, recipe, f"{recipe}.yaml", [], seed)
            for seed in options.seeds
        ]
        cells = [spread(runs, figure, show) for figure, show in COLUMNS.items()]
        rows.append([recipe, str(runs[0]["steps"]), *cells])
    header = ["recipe", "steps", *COLUMNS]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
