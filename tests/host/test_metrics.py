"""The run's records: never lost, never twice, whatever the crash left behind."""

import json
import math

from rljax.host.metrics import Records, json_text, read_records


def steps(path):
    return [record["step"] for record in read_records(path)]


def filled(path, count=4):
    records = Records(path)
    for step in range(1, count + 1):
        records.write({"step": step, "reward": step / 8})
    records.close()


def test_written_as_read(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    filled(path, 2)
    assert read_records(path) == [{"step": 1, "reward": 0.125}, {"step": 2, "reward": 0.25}]


def test_a_record_is_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = Records(path)
    records.write({"step": 1})
    assert steps(path) == [1]  # before close: a killed run loses nothing
    records.close()


def test_an_absent_file_has_no_records(tmp_path):
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    filled(path, 2)
    with path.open("a") as file:
        file.write('{"step": 3, "rew')
    assert steps(path) == [1, 2]


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    filled(path, 4)
    with path.open("a") as file:
        file.write('{"step": 5, "rew')
    records = Records(path, up_to_step=2)
    records.write({"step": 3})
    records.close()
    assert steps(path) == [1, 2, 3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resuming_at_step_0_keeps_what_came_before_the_first_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = Records(path)
    for step in (0, 1):
        records.write({"step": step})
    records.close()
    Records(path, up_to_step=0).close()
    assert steps(path) == [0]


def test_a_new_run_starts_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    filled(path, 2)
    Records(path).close()
    assert steps(path) == []


def test_a_number_that_is_not_finite_is_null_wherever_it_stands(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = Records(path)
    records.write({"step": 1, "loss": math.nan, "norm": -math.inf, "name": "nan", "reward": 0.5})
    records.close()
    assert read_records(path) == [
        {"step": 1, "loss": None, "norm": None, "name": "nan", "reward": 0.5}
    ]
    nested = {"before": {"x": math.inf}, "rows": [1.0, math.nan, True]}
    assert json.loads(json_text(nested)) == {"before": {"x": None}, "rows": [1.0, None, True]}
