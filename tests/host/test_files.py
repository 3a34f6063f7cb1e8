"""Files on a disk that is full, or fails for a while."""

import pytest

from rljax.host import files
from rljax.host.files import Appending, write_whole
from rljax.host.metrics import Journal, Records, read_records


class Disk:
    """A file that takes so many bytes, and then no more until there is room."""

    def __init__(self, file, room):
        self._file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = data[: self.room]
        self.room -= len(taken)
        return self._file.write(taken)

    def close(self):
        self._file.close()


def test_what_cannot_be_written_is_written_when_there_is_room_again(tmp_path):
    said = []
    file = Appending(tmp_path / "log", said.append)
    file._file = disk = Disk(file._file, room=7)
    for text in ("first\n", "second\n", "third\n"):
        file.write(text)
    assert (tmp_path / "log").read_text() == "first\ns"
    assert said == [f"cannot write to {tmp_path}/log: No space left on device; trying on"]
    disk.room = 100
    file.write("fourth\n")
    file.close()
    assert (tmp_path / "log").read_text() == "first\nsecond\nthird\nfourth\n"
    assert len(said) == 1


def test_half_a_line_that_a_crash_left_takes_no_other_with_it(tmp_path):
    (tmp_path / "log").write_text("whole\nha")
    file = Appending(tmp_path / "log", print)
    file.write("next\n")
    file.close()
    assert (tmp_path / "log").read_text() == "whole\nha\nnext\n"


def test_what_is_never_written_is_told_in_the_end(tmp_path):
    said = []
    file = Appending(tmp_path / "log", said.append)
    file._file = Disk(file._file, room=0)
    file.write("lost\n")
    file.close()
    assert said[-1] == f"{tmp_path}/log lacks its last 5 bytes"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    write_whole(path, "old")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_records_that_cannot_be_opened_stop_nothing(tmp_path):
    said = []
    (tmp_path / "metrics.jsonl").mkdir()
    records = Records(tmp_path / "metrics.jsonl", report=said.append)
    records.write({"step": 1})
    records.close()
    assert len(said) == 1
    assert "cannot write to" in said[0]


def test_a_damaged_record_is_left_out_and_said(tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    path.write_text('{"step": 1}\n{"st\x00ep": 2}\n[3]\n{"step": 3}\n{"step": 4}\n')
    records = Records(path, up_to_step=3, report=said.append)
    records.write({"step": 4})
    records.close()
    assert read_records(path) == [{"step": 1}, {"step": 3}, {"step": 4}]
    assert said == [f"{path}: 2 damaged line(s) left out; as it was: {path}.damaged"]


def test_records_that_are_known_take_the_place_of_others(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"step": 0, "reward": 9}\n{"step": 5}\n')
    records = Records(path, known=[{"step": 0, "reward": 1}])
    records.write({"step": 2})
    records.close()
    assert read_records(path) == [{"step": 0, "reward": 1}, {"step": 2}]


def test_the_journal_goes_on_over_starts(tmp_path):
    for name in ("start", "resume"):
        journal = Journal(tmp_path / "events.jsonl", print)
        journal.write(name, {"text": "…"})
        journal.close()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert ['"event": "start"' in lines[0], '"event": "resume"' in lines[1]] == [True, True]
