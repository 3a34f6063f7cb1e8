"""Which folder a run takes, whether the hosts share it, and from where it goes on."""

import json

import pytest
from tiny import CONFIG

from rljax import folder
from rljax.config import load_config
from rljax.errors import UserError
from rljax.folder import removed_if_refused, run_folder, steps_kept
from rljax.host.steps import sealed
from rljax.host.stopping import Stopped, TransientError


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


def test_a_run_does_not_write_through_a_link_out_of_its_folder(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "warm_start").mkdir(parents=True)
    other.mkdir()
    (run / "checkpoints").mkdir()
    (run / "best").symlink_to(run / "checkpoints")
    (tmp_path / "linked").symlink_to(run)
    for whole in (run, tmp_path / "linked"):  # where the user has put the whole folder
        folder.check_links(whole)
    for link, target in (("policy", other), ("warm_start/metrics.partial", other / "absent")):
        (run / link).symlink_to(target)
        with pytest.raises(UserError, match=f"{link} is a link to {target}, out of the folder"):
            folder.check_links(run)
        (run / link).unlink()


def test_a_run_with_another_token_is_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "hashes_of", lambda built: {"data.train": "rows"})
    judge = "{fn: verl_reward, function: 'json:loads', reward_kwargs: {key: %s}}"

    def begin(key, *settings):
        monkeypatch.setenv("MY_API_KEY", key)
        config = load_config(CONFIG, [f"rewards.judge={judge % key}", *settings])
        return folder.open_folder(tmp_path, config, None)

    opened = begin("can4ry-the-first")
    assert "key: '[MY_API_KEY]'" in (tmp_path / "config.yaml").read_text()
    (tmp_path / "checkpoints/3/meta").mkdir(parents=True)
    meta = sealed({"step": 3, **opened.about})
    (tmp_path / "checkpoints/3/meta/metadata").write_text(json.dumps(meta))
    assert begin("can4ry-the-second").changed == []
    with pytest.raises(UserError, match=r"another config \(seed 0 -> 1\)"):
        begin("can4ry-the-second", "seed=1")


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


@pytest.mark.parametrize(
    ("before", "kept", "error", "stays"),
    [
        (None, None, UserError("x"), False),
        (".", None, UserError("x"), False),
        ("config.yaml", None, UserError("x"), True),  # another run's
        (None, "checkpoints/0", UserError("x"), True),
        (None, "warm_start/checkpoints/8", UserError("x"), True),
        (None, "unopened/checkpoints/0", UserError("x"), False),  # a fork that does not fit
        (None, None, TransientError("x"), True),  # the same command goes on
        (None, None, Stopped(75), True),
        (None, None, OSError("x"), True),
    ],
)
def test_a_run_that_is_refused_leaves_no_folder(tmp_path, before, kept, error, stays):
    folder = tmp_path / "runs" / "0001"
    if before is not None:
        (folder / before).mkdir(parents=True)

    def run():
        with removed_if_refused(folder):
            kept_in = folder / (kept or "other").removeprefix("unopened/")
            kept_in.mkdir(parents=True)
            if kept and not kept.startswith("unopened/"):
                (folder / "config.yaml").touch()
            raise error

    with pytest.raises(type(error)):
        run()
    assert folder.exists() == stays


def test_a_file_in_the_place_of_a_folder_stays(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError), removed_if_refused(tmp_path / "run"):
        raise UserError("x")
    assert (tmp_path / "run").exists()
