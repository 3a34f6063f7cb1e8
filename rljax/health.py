"""When a run is healthy: the figures that say so, and within which bounds.

``rljax analyze --check``, the alert rules of ``launch/monitoring`` and the dashboard beside them
all go by this table.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

MIN, MAX = "length_band_min_tokens", "length_band_max_tokens"  # metrics: the edges of the band
ENOUGH_IN_BAND = 0.9  # share of the responses from which on lengths need no more shaping


class Sign(NamedTuple):
    """A figure that is healthy from ``low`` to ``high``: numbers, or names of figures."""

    metric: str
    low: float | str | None
    high: float | str | None
    below: str  # what it means
    above: str
    low_unless_in_band: bool = False  # nothing is wrong below where lengths are in a band, or free


SIGNS = (
    Sign(
        "length_penalty_mean", None, 0.5, below="", above="length costs more than what is learned"
    ),
    Sign(
        "response_length_p95",
        MIN,
        MAX,
        below="nearly all responses are shorter than the band",
        above="the longest responses are longer than the band",
    ),
    Sign(
        "reward_shaping_ratio",
        0.05,
        0.15,
        below="shaping is too weak to move the lengths",
        above="shaping drowns the task's own reward",
        low_unless_in_band=True,
    ),
    Sign("truncated_ratio", None, 0.25, below="", above="many responses are cut off by the budget"),
    Sign("left_out_ratio", None, 0.5, below="", above="most responses are not learned from"),
)


def judge(sign: Sign, figures: Mapping[str, float | None]) -> str | None:
    """ "low", "high" or "healthy", of figures by their names; None if they do not tell, as NaN.

    >>> judge(SIGNS[0], {"length_penalty_mean": 0.7})
    'high'
    """

    def number(bound):
        return figures.get(bound) if isinstance(bound, str) else bound

    value, low, high = figures.get(sign.metric), number(sign.low), number(sign.high)
    if (
        value is None
        or math.isnan(value)
        or (low is None and sign.low)
        or (high is None and sign.high)
    ):
        return None
    if low is not None and value < low:
        in_band = figures.get("in_band_ratio")
        spared = sign.low_unless_in_band and (in_band is None or in_band >= ENOUGH_IN_BAND)
        return "healthy" if spared else "low"
    return "high" if high is not None and value > high else "healthy"
