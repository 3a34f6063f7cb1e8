"""How a benchmark tells what it found: a table for people, and JSON as its last line."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

Figure = float | int | str | None  # None: not measured
Row = Mapping[str, Figure]

WIDTH = 160  # of a table in a file


def report(title: str, rows: Sequence[Row]) -> None:
    """Prints rows that have the same figures, by name. A single row stands upright."""
    name = machine()
    table = Table(title=f"{title}\n{name}")
    if len(rows) == 1:
        table.add_column("figure")
        table.add_column("value", justify="right")
        for figure, value in rows[0].items():
            table.add_row(figure, shown(value))
    else:
        for figure, value in rows[0].items():
            table.add_column(figure, justify="left" if isinstance(value, str) else "right")
        for row in rows:
            table.add_row(*map(shown, row.values()))
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)
    print(json.dumps({"machine": name, "rows": [dict(row) for row in rows]}), flush=True)


def machine() -> str:
    """The devices and the version that figures belong to.

    A CPU says little of itself to JAX; the kernel names it, and how many cores there are.
    """
    device = jax.devices()[0]
    name = f"{jax.device_count()} x {device.device_kind}"
    if device.platform == "cpu":
        name = f"{len(os.sched_getaffinity(0))} cores of {_processor()}"
        if jax.device_count() > 1:
            name += f", {jax.device_count()} simulated devices"
    return f"{name}, jax {jax.__version__}"


def shown(value: Figure) -> str:
    """A figure as a table has it: three digits, or as many as a large number has.

    >>> shown(0.12345), shown(1234567.8), shown(3), shown("full"), shown(None)
    ('0.123', '1,234,568', '3', 'full', '')
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
