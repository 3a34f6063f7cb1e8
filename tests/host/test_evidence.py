"""The rows at fault, as a file that a person can read."""

import json

import jax
import numpy as np
import pytest

from rljax.host.evidence import FILES, ROWS, BadSteps
from rljax.sharding import make_mesh
from rljax.tasks import character_tokenizer
from rljax.types import Evidence

TOKENIZER = character_tokenizer()
PROMPT, RESPONSE = "1+2=", "#3xx"
MESH = make_mesh(jax.devices()[:1])


def evidence_of(rows: int, **bad) -> Evidence:
    """Rows alike, of which some have something at fault; a column of it is the prompt's width."""
    ids = TOKENIZER.convert_tokens_to_ids(list(PROMPT + RESPONSE))
    at = np.arange(len(ids))
    real = np.broadcast_to(at < len(ids) - 1, (rows, len(ids)))  # the last one pads
    faulty = np.isin(np.arange(rows), [row for found in bad.values() for row in found])
    return Evidence(
        tokens=np.broadcast_to(np.array(ids, np.int32), real.shape),
        mask=real,
        action_mask=real & (at >= len(PROMPT)),
        logprobs=np.where(at == len(PROMPT), np.nan, -0.5).astype(np.float32) * np.ones((rows, 1)),
        bad={name: np.isin(np.arange(rows), found) for name, found in bad.items()},
        column=np.where(faulty, len(PROMPT), -1).astype(np.int32),
        figures={"raw": np.full(rows, np.inf, np.float32), "shaped": np.ones(rows, np.float32)},
        source={"prompt_index": np.arange(rows) // 2, "data_row": np.arange(rows) + 100},
        learned=np.arange(rows),
        updates={"applied": np.array([True, False]), "loss": np.float32([0.5, np.nan])},
    )


class Said(list):
    def __call__(self, event, text, /, **fields):
        self.append((event, text, fields))


@pytest.fixture
def said():
    return Said()


def test_a_step_is_told_with_its_updates_and_its_rows(tmp_path, said):
    steps = BadSteps(tmp_path / "bad_steps", MESH, TOKENIZER, said)
    path = steps.keep(12, "a log-prob is not finite in 2 row(s)", evidence_of(8, logprob=[3, 6]))
    assert path == tmp_path / "bad_steps" / "000012.json"
    told = json.loads(path.read_text())
    rows = told.pop("rows")
    assert told == {
        "step": 12,
        "why": "a log-prob is not finite in 2 row(s)",
        "updates_left_out": 1,
        "updates": [{"applied": True, "loss": 0.5}, {"applied": False, "loss": "nan"}],
        "rows_at_fault": 2,
    }
    assert [row["row"] for row in rows] == [3, 6]
    assert rows[0] == {
        "row": 3,
        "prompt_index": 1,
        "data_row": 103,
        "bad": ["logprob"],
        "prompt": PROMPT,
        "response": RESPONSE[:-1],
        "length_tokens": 3,
        "raw": "inf",
        "shaped": 1.0,
        "column": 4,
        "token": "#",
        "logprob": "nan",
    }
    ((event, text, fields),) = said
    assert event == "skipped"
    assert text == f"step 12: 1 of 2 update(s) left out: {told['why']}; see {path}"
    assert fields == {"step": 12, "updates": 1, "reason": told["why"], "file": str(path)}


def test_only_so_many_rows_are_written_and_the_rest_counted(tmp_path, said):
    rows = range(ROWS + 9)
    path = BadSteps(tmp_path, MESH, TOKENIZER, said).keep(
        1, "", evidence_of(len(rows), reward=list(rows))
    )
    told = json.loads(path.read_text())
    assert (told["rows_at_fault"], len(told["rows"])) == (ROWS + 9, ROWS)


def test_the_newest_files_are_kept(tmp_path, said):
    for step in (*range(FILES), 2_000_000):  # seven digits come after six
        (tmp_path / f"{step:06d}.json").write_text("{}")
    BadSteps(tmp_path, MESH, TOKENIZER, said).keep(1_999_999, "", evidence_of(2, reward=[1]))
    left = sorted(int(path.stem) for path in tmp_path.iterdir())
    assert left == [*range(2, FILES), 1_999_999, 2_000_000]


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path, said):
    (tmp_path / "bad_steps").write_text("a file")
    steps = BadSteps(tmp_path / "bad_steps", MESH, TOKENIZER, said)
    for step in (1, 2):
        assert steps.keep(step, "why", evidence_of(2, reward=[0])) is None
    assert [event for event, *_ in said] == ["warning", "skipped", "skipped"]
    assert "the run goes on without it" in said[0][1]
    assert said[2][1] == "step 2: 1 of 2 update(s) left out: why"
