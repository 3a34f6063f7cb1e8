"""An endpoint that Prometheus scrapes while a run goes on."""

import functools
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric

from rljax.errors import UserError
from rljax.host.guard import SKIPPED
from rljax.host.listeners import Listener
from rljax.metrics import find_metric, prometheus_name

SKIPPED_TOTAL = "skipped_updates_total"
NAMED = functools.lru_cache(4096)(prometheus_name)


def prometheus_sink(
    folder: Path, *, port: int, host: str, band: dict[str, float]
) -> tuple[Listener, str]:
    """Serves the newest metrics and figures, and the edges of the length ``band``, at once.

    Returns the listener, and the address; ``port`` 0 takes a free one. Raises ``UserError`` if it
    cannot listen there.
    """
    newest = _Newest({"source": "training", "run": folder.resolve().name}, band)
    registry = CollectorRegistry()
    registry.register(newest)
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"metrics.prometheus: cannot listen at {host}:{port}: {why}") from error

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    listener = Listener(
        "metrics.prometheus",
        begin=newest.begin,
        on_step=newest.on_step,
        on_eval=newest.on_eval,
        close=close,
    )
    shown = f"[{host}]" if ":" in host else host
    return listener, f"http://{shown}:{server.server_port}/metrics"


class _Newest:
    """The newest values, as a collector of Prometheus's client, whose threads read them."""

    def __init__(self, labels: dict[str, str], band: dict[str, float]):
        self._labels = labels
        self._band = {f"length_band_{edge}": value for edge, value in band.items()}
        self._metrics: dict[str, float] = {}
        self._figures: dict[str, float] = {}
        self._skipped = 0.0

    def begin(self, step: int, metrics: dict[str, float], figures: dict[str, float]) -> None:
        self._metrics = metrics | {"step": step}
        self.on_eval(step, figures, [])

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        self._skipped += metrics.get(SKIPPED, 0.0)
        self._metrics = metrics | {"step": step, "last_step_timestamp_seconds": time.time()}

    def on_eval(self, step: int, figures: dict[str, float], samples: list[dict]) -> None:
        self._figures = {f"eval/{name}": value for name, value in figures.items()}

    def collect(self) -> Iterator[Metric]:
        values = self._band | self._metrics | self._figures
        values |= {SKIPPED_TOTAL: self._skipped}
        families: dict[str, Metric] = {}
        seen = set()
        for name, value in values.items():
            exported, parts = NAMED(name)
            key = exported, *parts.values()
            if key in seen:  # of two of the user's own that differ in a sign only
                continue
            seen.add(key)
            if exported not in families:
                counts = name == SKIPPED_TOTAL
                families[exported] = Metric(
                    exported.removesuffix("_total") if counts else exported,
                    _help(name),
                    "counter" if counts else "gauge",
                )
            families[exported].add_sample(exported, self._labels | parts, value)
        yield from families.values()


def _help(name: str) -> str:
    found = find_metric(name)
    if found is None:
        return f"{name}, a metric of the run's own"
    metric = found[0]
    return f"{metric.meaning} ({metric.unit})" if metric.unit else metric.meaning
