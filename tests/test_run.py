"""What a run notices in its metrics and of its folder."""

import pytest

from rljax import run
from rljax.errors import UserError
from rljax.launch import run_folder
from rljax.run import moved_controllers, new_warnings, steps_kept


def test_a_controller_that_moved_is_named_once_with_its_new_value():
    def metrics(changes, weight):
        return {"shaping/length/weight": weight, "shaping/length/weight/changes": changes}

    seen = {}
    assert moved_controllers(seen, metrics(2, 2.25)) == {}  # the first step seen after a resume
    assert moved_controllers(seen, metrics(2, 2.25)) == {}
    assert moved_controllers(seen, metrics(3, 3.375)) == {"shaping/length/weight": 3.375}
    assert moved_controllers(seen, metrics(3, 3.375)) == {}


def test_trl_5697_most_responses_were_truncated_without_a_warning():
    said = set()
    assert new_warnings(said, {"truncated_ratio": 0.5, "left_out_ratio": 0.9}) == []
    (text,) = new_warnings(said, {"truncated_ratio": 0.97})
    assert "97% of the responses are cut off" in text
    assert new_warnings(said, {"truncated_ratio": 0.99}) == []  # once


def test_a_step_that_teaches_nothing_is_said_once():
    said = set()
    assert new_warnings(said, {"nll": 1.0}) == []
    (text,) = new_warnings(said, {"left_out_ratio": 1.0})
    assert "nothing is learned" in text
    assert new_warnings(said, {"left_out_ratio": 1.0}) == []


def test_a_folder_that_the_hosts_do_not_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run.jax, "process_count", lambda: 2)
    monkeypatch.setattr(run, "is_writer", lambda: False)
    monkeypatch.setattr(run, "agreed", lambda make: "there")
    monkeypatch.setattr(run, "meet", lambda where: None)
    monkeypatch.setattr(run, "SEEN_SECONDS", 0)
    with pytest.raises(UserError, match="not the one that process 0 writes to"):
        run.check_shared(tmp_path)
    (tmp_path / "there").touch()
    run.check_shared(tmp_path)


def test_a_bucket_is_no_folder():
    with pytest.raises(UserError, match="mount the bucket"):
        run_folder("gs://bucket/run")


def test_where_a_run_goes_on_is_told_by_its_newest_checkpoint(tmp_path):
    assert steps_kept(tmp_path) == "the beginning"
    for step in ("8", "16", "24.orbax-checkpoint-tmp"):
        (tmp_path / "warm_start/checkpoints" / step).mkdir(parents=True)
    assert steps_kept(tmp_path) == "step 16 of the warm start"
    (tmp_path / "checkpoints/0").mkdir(parents=True)
    assert steps_kept(tmp_path) == "step 0"
