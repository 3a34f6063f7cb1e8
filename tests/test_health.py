"""The verdict on a run's figures, at the bounds and beyond."""

import pytest

from rljax.health import MAX, MIN, SIGNS, judge

BY_NAME = {sign.metric: sign for sign in SIGNS}
BAND = {MIN: 30, MAX: 80}


@pytest.mark.parametrize(
    ("metric", "value", "others", "verdict"),
    [
        ("length_penalty_mean", 0.5, {}, "healthy"),
        ("length_penalty_mean", 0.51, {}, "high"),
        ("response_length_p95", 29.9, BAND, "low"),
        ("response_length_p95", 30, BAND, "healthy"),
        ("response_length_p95", 80, BAND, "healthy"),
        ("response_length_p95", 80.1, BAND, "high"),
        ("response_length_p95", 50, {}, None),
        ("reward_shaping_ratio", 0.04, {"in_band_ratio": 0.89}, "low"),
        ("reward_shaping_ratio", 0.04, {"in_band_ratio": 0.9}, "healthy"),
        ("reward_shaping_ratio", 0.04, {}, "healthy"),
        ("reward_shaping_ratio", 0.16, {"in_band_ratio": 1.0}, "high"),
        ("truncated_ratio", 0.3, {}, "high"),
        ("left_out_ratio", 0.6, {}, "high"),
        ("left_out_ratio", None, {}, None),
        ("left_out_ratio", float("nan"), {}, None),
    ],
)
def test_a_sign(metric, value, others, verdict):
    assert judge(BY_NAME[metric], {metric: value, **others}) == verdict
