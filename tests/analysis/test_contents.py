"""What lies in the report: all that was asked for, no secret, and not too much."""

import json

import pytest
from recorded import BAND, HOSTILE, figures, sample, write_run

from rljax.analysis import contents as module
from rljax.analysis.contents import contents
from rljax.analysis.reading import read_run
from rljax.analysis.series import last_window
from rljax.analysis.verdict import judged
from rljax.health import SIGNS
from rljax.host.samples import write_samples


def shown(*runs, names=("reward_mean", "length_mean")):
    windows = [last_window(run.steps, 0.1) for run in runs]
    return contents(
        runs=runs,
        names=names,
        signs=SIGNS,
        windows=windows,
        findings=[judged(run, window) for run, window in zip(runs, windows, strict=True)],
        comparisons=[],
        weight=0.6,
    )


@pytest.fixture
def folder(tmp_path):
    evaluations = [{"step": 0, "length_mean": 33.0}, {"step": 2, "length_mean": 30.0}]
    responses = [("first", 30), (HOSTILE, 50), ("third", 10)]
    return write_run(tmp_path / "a", [figures(1), figures(2)], evaluations, responses=responses)


def test_curves_distributions_and_responses(folder):
    told = shown(read_run(folder, "a"))
    reward, length = told["curves"]
    assert reward["runs"][0]["line"]["values"] == [0.51, 0.52]
    assert length["runs"][0]["held_out"]["values"] == [33.0, 30.0]
    assert (length["length"], reward["length"]) == (True, False)
    assert told["runs"][0]["band"] == list(BAND)
    before, after = told["histograms"]["runs"][0]
    assert (before["step"], after["step"], sum(after["bins"])) == (0, 2, 3)
    assert after["shares"]["in band"] == pytest.approx(1 / 3)
    first, second = told["samples"]["tables"]
    assert first["response"] == second["response"] == ["first", HOSTILE, "third"]
    assert first["verdict"] == ["in band", "long", "short"]
    assert first["rewards"] == {"correct": [1.0, 0.0, 1.0]}
    assert len(told["samples"]["prompts"]) == 3  # each once


def test_no_secret_is_told(folder, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "canary-0001-canary")
    write_samples(folder, 2, [])  # redacts by itself; below, what was written before
    run = read_run(folder, "canary-0001-canary")
    event = {"time": "", "event": "warning", "text": "https://me:canary-0002@host"}
    told = json.dumps(shown(run._replace(events=[event])))
    assert "canary" not in told
    assert "[MY_TOKEN]" in told


def test_a_report_of_much_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_TEXT", 10_000)
    monkeypatch.setattr(module, "LONGEST_TEXT", 500)
    run = read_run(write_run(tmp_path, [figures(step) for step in range(1, 4_001)]), "a")
    for step in (1, 2):
        rows = [sample(index, f"{index} " + "x" * 1_000, 25) for index in range(40)]
        write_samples(tmp_path, step, rows)
    told = shown(run)
    assert len(told["curves"][0]["runs"][0]["line"]["values"]) <= module.POINTS_PER_CURVE
    kept = [len(table["response"]) for table in told["samples"]["tables"]]
    assert 5 < min(kept) == max(kept) < 12
    assert told["samples"]["left_out"] == 80 - sum(kept)
    assert told["samples"]["tables"][0]["response"][0].endswith("x … [502 characters more]")


def test_a_table_of_which_nothing_has_room_is_left_out(folder, monkeypatch):
    """The page takes it that a table has responses."""
    monkeypatch.setattr(module, "MOST_TEXT", 10)
    told = shown(read_run(folder, "a"))["samples"]
    assert told == {"prompts": [], "tables": [], "left_out": 6}


def test_a_value_that_is_no_number_is_null(tmp_path):
    run = read_run(write_run(tmp_path, [figures(1, a=None), figures(2, a=1.0)]), "a")
    values = shown(run, names=["a"])["curves"][0]["runs"][0]["line"]["values"]
    assert values[0] != values[0]  # NaN here, and null in the page
    assert values[1] == 1.0
