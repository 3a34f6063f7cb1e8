"""The verdict on runs that are healthy, or sick in one way."""

import pytest
from recorded import as_lines, figures, healthy, write_run

from rljax.analysis.reading import read_run
from rljax.analysis.series import last_window
from rljax.analysis.verdict import is_healthy, judged, with_threshold
from rljax.errors import UserError
from rljax.health import SIGNS


def wrong(folder, signs=SIGNS, share=0.1):
    """Name and verdict of what is wrong with a run, and whether it is healthy."""
    run = read_run(folder, "a")
    findings = judged(run, last_window(run.steps, share), signs)
    found = {finding.name: finding.verdict for finding in findings if not finding.sound}
    return found, is_healthy(findings)


def test_a_healthy_run(tmp_path):
    assert wrong(healthy(tmp_path)) == ({}, True)


@pytest.mark.parametrize(
    ("others", "found"),
    [
        ({"length": 50.0}, {"response_length_p95": "high"}),
        ({"length": 10.0}, {"response_length_p95": "low"}),
        ({"length_penalty_mean": 0.6}, {"length_penalty_mean": "high"}),
        ({"reward_shaping_ratio": 0.2}, {"reward_shaping_ratio": "high"}),
        ({"reward_shaping_ratio": 0.0}, {}),  # for the lengths are in the band
        (
            {"length": 50.0, "reward_shaping_ratio": 0.0},
            {"response_length_p95", "reward_shaping_ratio"},
        ),
        ({"truncated_ratio": 0.3}, {"truncated_ratio": "high"}),
        ({"left_out_ratio": 0.6}, {"left_out_ratio": "high"}),
        ({"guard/skipped_updates": 1}, {"guard/skipped_updates": "unhealthy"}),
        ({"policy/loss": None}, {"values not finite": "unhealthy"}),
    ],
)
def test_one_thing_is_wrong(others, found, tmp_path):
    told, sound = wrong(healthy(tmp_path, **others))
    assert set(told) == set(found)
    assert isinstance(found, set) or told == found
    assert sound == (not found)


def test_only_the_window_counts(tmp_path):
    records = [figures(step, length=50.0 if step <= 35 else 30.0) for step in range(1, 41)]
    assert wrong(write_run(tmp_path, records)) == ({}, True)
    assert wrong(tmp_path, share=0.5)[0] == {"response_length_p95": "high"}


@pytest.mark.parametrize(
    "text",
    [
        as_lines([figures(step) for step in (1, 2, 4, 5)]),
        as_lines([figures(1), figures(2)]) + "{\n" + as_lines([figures(3)]),
        as_lines([figures(1), figures(1), figures(2)]),
    ],
)
def test_records_with_gaps_are_unhealthy(text, tmp_path):
    assert wrong(write_run(tmp_path, text)) == ({"records": "unhealthy"}, False)


def test_nothing_measured_is_not_healthy(tmp_path):
    run = write_run(tmp_path, [{"step": 1, "some/loss": 1.0}])
    assert wrong(run) == ({}, False)
    guarded = write_run(tmp_path / "b", [{"step": 1, "guard/skipped_updates": 0}])
    assert wrong(guarded) == ({}, True)


def test_without_a_band_the_lengths_are_not_measured(tmp_path):
    run = read_run(write_run(tmp_path, [figures(1)], config="seed: 0\n"), "a")
    by_name = {finding.name: finding for finding in judged(run, last_window(run.steps, 0.1))}
    assert by_name["response_length_p95"].verdict == "not measured"
    assert "--min-tokens" in by_name["response_length_p95"].meaning


def test_thresholds_can_be_given(tmp_path):
    there = set(figures(1))
    folder = healthy(tmp_path, reward_shaping_ratio=0.18)
    assert wrong(folder)[0] == {"reward_shaping_ratio": "high"}
    assert wrong(folder, with_threshold(SIGNS, "reward_shaping_ratio=0:0.2", there)) == ({}, True)
    strict = with_threshold(SIGNS, "reward_shaping_ratio=0.19:0.2", there)
    assert wrong(folder, strict)[0] == {"reward_shaping_ratio": "low"}
    own = with_threshold(SIGNS, "reward_mean = 0.9 :", there)
    assert wrong(folder, own)[0] == {"reward_shaping_ratio": "high", "reward_mean": "low"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reward_mean", "METRIC=LOW:HIGH is needed"),
        ("reward_mean=:", "METRIC=LOW:HIGH is needed"),
        ("reward_mean=a:b", "METRIC=LOW:HIGH is needed"),
        ("reward_mean=nan:1", "METRIC=LOW:HIGH is needed"),
        ("reward_mean=2:1", "above the upper one"),
        ("reward_meen=0:1", 'did you mean "reward_mean"'),
    ],
)
def test_a_threshold_that_cannot_be_read_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        with_threshold(SIGNS, text, {"reward_mean"})
