"""Every metric of a run: its name, unit and meaning, and its name in Prometheus."""

from rljax.metrics.listed import GROUPS, METRICS, Metric
from rljax.metrics.names import PREFIX, find_metric, prometheus_name

__all__ = ["GROUPS", "METRICS", "PREFIX", "Metric", "find_metric", "prometheus_name"]
