"""Where metrics go beside the run's own records: each a listener.

All take them under the names of metrics.jsonl, and the figures of evaluations under ``eval/``.
"""

from rljax.host.sinks.mlflow import check_mlflow, mlflow_sink
from rljax.host.sinks.packages import needed
from rljax.host.sinks.prometheus import prometheus_sink
from rljax.host.sinks.tensorboard import tensorboard_sink
from rljax.host.sinks.wandb import check_wandb, wandb_sink

__all__ = [
    "check_mlflow",
    "check_wandb",
    "mlflow_sink",
    "needed",
    "prometheus_sink",
    "tensorboard_sink",
    "wandb_sink",
]
