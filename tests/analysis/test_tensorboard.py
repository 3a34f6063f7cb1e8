"""Event files, as TensorBoard's own writer leaves them."""

import sys

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rljax.analysis.figures import chosen
from rljax.analysis.reading import read_run
from rljax.analysis.tensorboard import read_scalars
from rljax.errors import UserError


def write_events(folder, points, suffix="", start=None):
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    if start is not None:
        writer.add_event(Event(step=start, session_log=SessionLog(status=SessionLog.START)))
    for step, tag, value in points:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.add_event(Event(step=step, summary=summary))
    writer.close()


def test_scalars_of_several_files(tmp_path):
    write_events(tmp_path, [(10, "train/reward", 0.5), (20, "train/reward", 0.75)], ".a")
    write_events(tmp_path, [(20, "train/reward", 1.0), (20, "bad", float("nan"))], ".b")
    found = read_scalars(tmp_path)
    assert found["train/reward"].steps.tolist() == [10, 20]
    assert found["train/reward"].values.tolist() == [0.5, 1.0]
    assert np.isnan(found["bad"].values).tolist() == [True]
    run = read_run(tmp_path, "other")
    assert (run.steps, run.band, run.faults) == ((10, 20), None, [])


def test_a_run_that_went_on_from_before_its_end(tmp_path):
    """Steps 3 and 4 were lost; step 3 was done again."""
    write_events(tmp_path, [(step, "a", 1.0) for step in (1, 2, 3, 4)], ".a", start=0)
    write_events(tmp_path, [(2, "a", 1.0), (3, "a", 2.0), (3, "eval/b", 0.5)], ".b", start=2)
    run = read_run(tmp_path, "a")
    assert run.metrics["a"].steps.tolist() == [1, 2, 3]
    assert run.metrics["a"].values.tolist() == [1.0, 1.0, 2.0]
    assert run.held_out["b"].values.tolist() == [0.5]
    assert chosen(["eval/b", "a"], [run]) == ["b", "a"]


def test_a_file_that_was_cut_short_is_read_so_far(tmp_path):
    write_events(tmp_path, [(step, "a", 1.0) for step in (1, 2, 3)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    assert read_scalars(tmp_path)["a"].steps.tolist() == [1, 2]
    path.write_bytes(b"no event file")
    assert read_scalars(tmp_path) == {}


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    write_events(tmp_path, [(1, "a", 1.0)])
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        read_scalars(tmp_path)
