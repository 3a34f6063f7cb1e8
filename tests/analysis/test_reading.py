"""Runs as they were recorded, sound and damaged."""

import numpy as np
from recorded import as_lines, figures, healthy, write_run

from rljax.analysis.reading import Band, columns, read_run, read_runs


def test_figures_need_not_be_in_every_record():
    found = columns([{"step": 1, "a": 1}, {"step": 2, "b": None, "name": "x", "is": True}])
    assert found.keys() == {"a", "b"}
    assert found["a"].steps.tolist() == [1]
    assert np.isnan(found["b"].values).all()


def test_a_whole_run(tmp_path):
    events = [
        {"time": "2026-01-01T00:00:00", "event": "compiling", "program": "train"},
        {"time": "2026-01-01T00:00:01", "event": "warning", "step": 3, "text": "slow"},
        {"event": "resume", "phase": "train", "step": 4},
    ]
    evaluations = [{"step": 0, "accuracy_greedy": 0.5}, {"step": 2, "accuracy_greedy": 0.75}]
    write_run(tmp_path / "a", [figures(1), figures(2)], evaluations, events=events)
    (run,) = read_runs([tmp_path / "a"])
    assert (run.label, run.steps, run.band, run.faults) == ("a", (1, 2), Band(20, 40), [])
    assert run.held_out["accuracy_greedy"].values.tolist() == [0.5, 0.75]
    assert [event["text"] for event in run.events] == ["step 3: slow", "phase train, step 4"]
    assert run.names >= {"reward_mean", "accuracy_greedy"}


def test_what_is_wrong_with_the_records_is_told(tmp_path):
    text = as_lines([figures(1), figures(2), figures(2), figures(5)])
    text += "{damaged\n" + '{"step": 99999999999999999999, "a": 1}\n' + '{"step": 6, "half'
    run = read_run(write_run(tmp_path, text), "a")
    assert run.steps == (1, 2, 2, 5)
    assert run.faults == [
        "2 damaged line(s)",
        "1 step(s) there more than once",
        "2 step(s) missing, the first of them 3",
    ]


def test_numbers_that_are_none_are_gaps(tmp_path):
    text = '{"step": 1, "a": NaN, "b": 1e999, "c": ' + "9" * 400 + ', "d": null}\n'
    run = read_run(write_run(tmp_path, text), "a")
    assert {name for name, series in run.metrics.items() if np.isnan(series.values).all()} == {
        *("a", "b", "c", "d")
    }


def test_the_band_is_that_of_the_config_or_as_recorded_or_as_told(tmp_path):
    edges = {"length_band_min_tokens": 5.0, "length_band_max_tokens": 9.0}
    records = [figures(1, **edges)]
    assert read_run(write_run(tmp_path / "a", records), "a").band == (20, 40)
    none = write_run(tmp_path / "b", records, config="length: null\n")
    assert read_run(none, "b").band == (5, 9)
    assert read_run(none, "b", Band(1, 2)).band == (1, 2)
    assert read_run(write_run(tmp_path / "c", [figures(1)], config="seed: 1\n"), "c").band is None


def test_a_config_that_cannot_be_used_is_told_and_passed_over(tmp_path):
    for name, config in (
        ("broken", "a: [\n"),
        ("reversed", "length: {min_tokens: 9, max_tokens: 2}\n"),
        ("text", "length: {min_tokens: few, max_tokens: 2}\n"),
    ):
        run = read_run(write_run(tmp_path / name, [figures(1)], config=config), name)
        assert run.band is None
        assert len(run.notes) == 1


def test_a_run_that_has_only_begun(tmp_path):
    run = read_run(write_run(tmp_path, ""), "a")
    assert (run.steps, run.names, run.faults) == ((), set(), [])
    assert read_run(healthy(tmp_path / "b", steps=1), "b").steps == (1,)
