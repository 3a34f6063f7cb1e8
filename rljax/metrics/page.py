"""``python -m rljax.metrics.page``: the tables of docs/metrics.md, from the list."""

from rljax.metrics.listed import GROUPS, Metric
from rljax.metrics.names import exported_name


def tables() -> str:
    """A heading and a table for each group of metrics, in Markdown."""
    return "\n".join(_table(title, metrics) for title, metrics in GROUPS.items())


def _table(title: str, metrics: tuple[Metric, ...]) -> str:
    rows = [
        ("metric", "unit", "meaning", "computed in", "verl, TRL", "Prometheus"),
        ("---",) * 6,
        *(_row(metric) for metric in metrics),
    ]
    return f"### {title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(metric: Metric) -> tuple[str, ...]:
    peers = ", ".join(f"`{word}`" for word in metric.peers.split(", ") if word)
    meaning = metric.meaning.replace("|", "\\|")
    return (
        f"`{metric.name}`",
        metric.unit,
        meaning,
        f"`{metric.source}`",
        peers,
        f"`{exported_name(metric)}`",
    )


if __name__ == "__main__":
    print(tables(), end="")
