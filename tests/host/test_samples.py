"""Tables of samples: their types, their bytes, and who can read them."""

import datasets
import pandas as pd
import pyarrow.parquet as pq
import pytest

from rljax.errors import UserError
from rljax.host.samples import (
    COLUMNS,
    keep_samples,
    read_samples,
    sampled_steps,
    table_path,
    write_samples,
)

ROW = {
    "prompt_index": 0,
    "prompt": "1+2=",
    "response": "#3 ü\n\N{SNOWMAN}",
    "greedy": True,
    "length_tokens": 6,
    "length_verdict": "in band",
    "truncated": False,
    "correct": True,
    "reward/correct": 1.0,
    "reward/a.b": -0.5,
    "reward_raw": 1.0,
    "shaping": -0.25,
    "reward_shaped": 0.75,
}
FAILED = ROW | dict.fromkeys(["correct", "reward/a.b", "reward_raw", "shaping", "reward_shaped"])


def test_what_was_written_is_read(tmp_path):
    write_samples(tmp_path, 80, [ROW, FAILED])
    assert table_path(tmp_path, 80) == tmp_path / "samples/00000080.parquet"
    assert read_samples(tmp_path, 80) == [{"step": 80, **ROW}, {"step": 80, **FAILED}]
    names = pq.read_schema(table_path(tmp_path, 80)).names
    rewards = ["reward/correct", "reward/a.b"]
    assert names == [*[n for n in COLUMNS if n != "source"][:9], *rewards, *list(COLUMNS)[-3:]]


def test_the_order_of_a_rows_keys_and_of_what_is_null_changes_no_type(tmp_path):
    write_samples(tmp_path, 0, [ROW])
    write_samples(tmp_path, 1, [dict(reversed(FAILED.items()))])
    one, other = (pq.read_schema(table_path(tmp_path, step)) for step in (0, 1))
    assert {f.name: f.type for f in one} == {f.name: f.type for f in other}
    assert str(other.field("reward_raw").type) == "double"


def test_the_same_rows_are_the_same_bytes(tmp_path):
    rows = [ROW | {"prompt_index": i, "shaping": i / 7} for i in range(500)]
    for step in (4, 4, 5):
        write_samples(tmp_path / f"{step}", 4, rows)
    first = table_path(tmp_path / "4", 4).read_bytes()
    assert table_path(tmp_path / "5", 4).read_bytes() == first
    assert not list(tmp_path.glob("*/samples/.*"))


def test_secrets_are_kept_out(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-s3cr3t")
    monkeypatch.setenv("MY_KEY", "12345678")  # a number of a column stays one
    write_samples(tmp_path, 12345678, [ROW | {"response": "s3cr3t-s3cr3t"}])
    (row,) = read_samples(tmp_path, 12345678)
    assert (row["step"], row["response"]) == (12345678, "[MY_TOKEN]")


def test_other_libraries_read_all_tables_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    write_samples(tmp_path, 0, [FAILED, FAILED])
    write_samples(tmp_path, 40, [ROW])
    pattern = str(tmp_path / "samples/*.parquet")
    data = datasets.load_dataset("parquet", data_files=pattern, cache_dir=tmp_path / "cache")
    assert data["train"]["step"][:] == [0, 0, 40]
    assert data["train"]["reward_shaped"][:] == [None, None, 0.75]
    frame = pd.read_parquet(tmp_path / "samples")
    assert frame.groupby("step").reward_raw.mean().to_dict()[40] == 1.0
    assert list(frame.columns) == list(data["train"].column_names)


def test_tables_of_other_steps_are_removed_and_missing_ones_told(tmp_path):
    assert (sampled_steps(tmp_path), keep_samples(tmp_path, [])) == ([], [])
    for step in (0, 40, 20):
        write_samples(tmp_path, step, [ROW])
    (tmp_path / "samples/notes.parquet").touch()
    assert sampled_steps(tmp_path) == [0, 20, 40]
    assert keep_samples(tmp_path, [0, 20, 60]) == [60]
    assert sampled_steps(tmp_path) == [0, 20]


def test_a_table_that_cannot_be_read_ends_in_one_line(tmp_path):
    write_samples(tmp_path, 0, [ROW])
    path = table_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-30])
    for step in (0, 1):
        with pytest.raises(UserError, match=f"cannot read .*{step:08d}.parquet: ") as told:
            read_samples(tmp_path, step)
        assert "\n" not in str(told.value)
