"""Every metric of a run: its name, unit and meaning, and its name in Prometheus.

A name may have parts that a run fills in, such as ``rewards/{reward}/mean``.
"""

import re
from typing import NamedTuple

PREFIX = "rljax_"


class Metric(NamedTuple):
    name: str
    unit: str  # tokens, nats, seconds, share, ...; "" for a plain number
    meaning: str
    source: str  # where it is computed


METRICS: tuple[Metric, ...] = ()


def prometheus_name(name: str) -> tuple[str, dict[str, str]]:
    """The name of a metric in Prometheus, and the labels that hold its parts.

    >>> prometheus_name("policy/ppo_kl")
    ('rljax_policy_ppo_kl', {})
    """
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]+", "_", name), {}
