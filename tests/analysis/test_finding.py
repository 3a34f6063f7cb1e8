"""Which folders are runs."""

import pytest
from recorded import healthy

from rljax.analysis.finding import MOST_LEVELS, find_runs, labels
from rljax.errors import UserError


def test_a_folder_of_runs_is_all_of_them(tmp_path):
    runs = [healthy(tmp_path / "logs" / name) for name in ("a", "deep/er/b")]
    (tmp_path / "logs" / "empty").mkdir()
    healthy(tmp_path / "logs" / ".hidden")
    healthy(runs[0] / "warm_start")  # of a run, and none by itself
    assert find_runs([tmp_path / "logs"]) == runs
    assert find_runs([runs[0], tmp_path / "logs", runs[0] / ".." / "a"]) == runs


def test_a_folder_with_event_files_is_a_run(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "events.out.tfevents.1.host").touch()
    assert find_runs([tmp_path]) == [tmp_path / "other"]


def test_links_in_a_circle_end(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "again").symlink_to(tmp_path)
    with pytest.raises(UserError, match="holds no records"):
        find_runs([tmp_path])
    assert MOST_LEVELS < 10


def test_what_is_no_folder_of_runs_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path, words in ((tmp_path / "no", "is not there"), (tmp_path / "file", "is a file")):
        with pytest.raises(UserError, match=words):
            find_runs([path])


def test_labels_are_the_shortest_that_differ(tmp_path):
    folders = [tmp_path / part for part in ("x/run", "y/run", "z/other")]
    assert labels(folders) == ["x/run", "y/run", "z/other"]
    assert labels(folders[1:]) == ["run", "other"]
    assert labels(folders[:1]) == ["run"]
    assert labels([]) == []
