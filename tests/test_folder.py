"""Which folder a run takes, whether the hosts share it, and from where it goes on."""

import pytest

from rljax import folder
from rljax.errors import UserError
from rljax.folder import run_folder, steps_kept


def test_a_folder_that_the_hosts_do_not_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.jax, "process_count", lambda: 2)
    monkeypatch.setattr(folder, "is_writer", lambda: False)
    monkeypatch.setattr(folder, "agreed", lambda make: "there")
    monkeypatch.setattr(folder, "meet", lambda where: None)
    monkeypatch.setattr(folder, "SEEN_SECONDS", 0)
    with pytest.raises(UserError, match="not the one that process 0 writes to"):
        folder.check_shared(tmp_path)
    (tmp_path / "there").touch()
    folder.check_shared(tmp_path)


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
