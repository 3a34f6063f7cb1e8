"""What listens to a run, as its config says: sinks of metrics, and callbacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rljax.config import Callbacks, Config, resolved
from rljax.host.agree import is_writer
from rljax.host.callbacks import make_callbacks
from rljax.host.distributed import is_loopback
from rljax.host.listeners import Failure, Listener, Listeners
from rljax.host.secrets import redacted
from rljax.host.sinks import (
    check_mlflow,
    check_wandb,
    mlflow_sink,
    needed,
    prometheus_sink,
    tensorboard_sink,
    wandb_sink,
)


def check_listening(config: Config) -> None:
    """Sees that every package is there, and that every callback can be called.

    Raises ``UserError``. Of several processes one listens.
    """
    if not is_writer():
        return
    metrics = config.metrics
    if metrics.tensorboard:
        needed("tensorboard")
    if metrics.mlflow is not None:
        check_mlflow(metrics.mlflow.tracking_uri)
    if metrics.wandb is not None:
        check_wandb(metrics.wandb)
    _callbacks(config.callbacks, Path())


def open_listeners(
    config: Config, folder: Path, say: Callable[..., None], report: Callable[[Failure], None]
) -> Listeners:
    """The listeners of the run in a folder; none where another process writes.

    ``say`` is a terminal's. Raises ``UserError`` if one cannot be set up.
    """
    if not is_writer():
        return Listeners([], report)
    metrics, groups = config.metrics, [_callbacks(config.callbacks, folder)]
    shown = redacted(resolved(config))
    if metrics.tensorboard:
        there = folder / "tensorboard"
        if isinstance(metrics.tensorboard, str):
            there = Path(metrics.tensorboard).expanduser() / folder.resolve().name
        groups.append([tensorboard_sink(there)])
    if metrics.wandb is not None:
        groups.append([wandb_sink(folder, shown, check_wandb(metrics.wandb))])
    if metrics.mlflow is not None:
        groups.append([mlflow_sink(folder, shown, **metrics.mlflow.model_dump())])
    if metrics.prometheus is not None:
        band = config.length.model_dump() if config.length else {}
        listener, address = prometheus_sink(folder, **metrics.prometheus.model_dump(), band=band)
        text = f"{'metrics':<11} served at {address}"
        if not is_loopback(f"{metrics.prometheus.host}:0"):
            text += ", without a password: keep that port within a network that you trust"
        say("prometheus", text, address=address, text=text)
        groups.append([listener])
    return Listeners(groups, report)


def _callbacks(callbacks: Callbacks, folder: Path) -> list[Listener]:
    """All on one thread, so that they are called one after another."""
    given: dict[str, Any] = {kind: nodes for kind, nodes in callbacks if nodes is not None}
    return [
        listener
        for kind, nodes in given.items()
        for listener in make_callbacks(kind, nodes, folder)
    ]
