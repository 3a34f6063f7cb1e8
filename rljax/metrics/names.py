"""What a metric's name says: which of the list it is, and what Prometheus calls it."""

import functools
import re

from rljax.metrics.listed import METRICS, Metric

PREFIX = "rljax_"
PART = re.compile(r"\\\{(\w+)\\\}")  # of a name, filled in by a run; as re.escape writes it


def find_metric(name: str) -> tuple[Metric, dict[str, str]] | None:
    """The metric of the list that a name is of, and its parts; None for one of the user's own.

    >>> find_metric("rewards/correct/std")[1]
    {'reward': 'correct'}
    """
    for metric, pattern in _patterns():
        if found := pattern.fullmatch(name):
            return metric, found.groupdict()
    return None


def prometheus_name(name: str) -> tuple[str, dict[str, str]]:
    """The name of a metric in Prometheus, and the labels that hold its parts.

    >>> prometheus_name("policy/ppo_kl")
    ('rljax_policy_ppo_kl', {})
    >>> prometheus_name("rewards/correct/mean")
    ('rljax_rewards_mean', {'reward': 'correct'})
    """
    found = find_metric(name)
    if found is None:
        return _plain(name), {}
    metric, labels = found
    return exported_name(metric), labels


def exported_name(metric: Metric) -> str:
    """The name in Prometheus of a metric of the list, whatever its parts."""
    return _plain(metric.exported or re.sub(r"\{\w+\}/?", "", metric.name))


def _plain(name: str) -> str:
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]+", "_", name).strip("_")


@functools.cache
def _patterns() -> tuple[tuple[Metric, re.Pattern[str]], ...]:
    """The list with the patterns of its names, those without parts first."""
    whole = sorted(METRICS, key=lambda metric: "{" in metric.name)
    return tuple((m, re.compile(PART.sub(r"(?P<\1>.+)", re.escape(m.name)))) for m in whole)
