"""``rljax score``: files in, files out, and what is said."""

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from tiny import SETTINGS

from rljax import score
from rljax.host.samples import COLUMNS

OWN = [*SETTINGS, "warm_start=null"]
ROWS = [
    {"prompt": "1+2=", "response": "#3", "answer": "3", "finish_reason": "stop"},
    {"prompt": "1+2=", "response": "is it 3? #4 o", "answer": "3", "finish_reason": "length"},
    {"prompt": "3+4=", "response": "", "answer": "7", "finish_reason": "stop"},
]
JUDGE = """
def brevity(prompts, completions, answer, **columns):
    return [None if not c else -len(c) / 10 for c in completions]
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "logged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def said(capsys, *arguments, code=0):
    """What is printed, event by event; or the error."""
    assert score.main([*map(str, arguments)]) == code
    captured = capsys.readouterr()
    if code:
        return captured.err
    return [json.loads(line) for line in captured.out.splitlines()]


def test_a_file_of_responses_is_judged_and_written(file, capsys):
    (file.parent / "style.py").write_text(JUDGE)
    own = "rewards.brief={fn: trl_reward, function: 'style:brevity'}"
    events = said(capsys, file, *OWN, own, "--out", "out/scored.parquet")
    told = {event["event"]: event for event in events}
    assert told["responses"]["text"].endswith(
        '3 responses, by "prompt", "response", "finish_reason"'
    )
    assert told["left out"]["text"] == "shaping.kl is left out: it needs the reference policy"
    assert told["shaping"]["text"] == "shaping is that which training begins with"
    figures = told["done"]["figures"]
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert figures["length_mean"] == pytest.approx((3 + 13 + 1) / 3)
    assert figures["rewards/brief/mean"] == pytest.approx(-0.75)
    health = {e["metric"]: e["health"] for e in events if e["event"] == "health"}
    assert health["truncated_ratio"] == health["response_length_p95"] == "high"
    table = pq.read_table("out/scored.parquet")
    names = [n for n in COLUMNS if n not in ("step", "source", "greedy")]
    names[-3:-3] = ["reward/brief", "reward/correct"]
    assert table.column_names == names
    rows = table.to_pylist()
    assert [row["prompt_index"] for row in rows] == [0, 0, 1]
    assert [row["response"] for row in rows] == [row["response"] for row in ROWS]
    assert [row["length_verdict"] for row in rows] == ["short", "long", "short"]
    assert [row["truncated"] for row in rows] == [False, True, False]
    assert [row["reward/brief"] for row in rows] == [pytest.approx(-0.2), pytest.approx(-1.3), None]
    assert rows[0]["reward_raw"] == pytest.approx(0.8)


def test_characters_that_the_tokenizer_does_not_know_are_the_response_s(file, capsys):
    file.write_text('{"prompt": "1+2=", "response": "w\u00f6", "answer": "3"}\n')
    error = said(capsys, file, code=2)
    assert 'logged.jsonl:1: "response" has characters that' in error


def test_columns_that_no_compiled_reward_can_read_are_told_and_kept_for_others(file, capsys):
    """Logs have columns of all kinds, and verl's ``reward_model`` is data."""
    (file.parent / "users.py").write_text(
        "def known(prompts, completions, user, **columns):\n"
        "    assert 'length_tokens' not in columns\n"
        "    return [float(one is not None) for one in user]\n"
    )
    more = [{"user": None}, {"user": "ann"}, {"user": "bob"}]
    for old, new in zip(ROWS, more, strict=True):
        new |= {**old, "created": 1 << 40, "reward_model": {"ground_truth": old["answer"]}}
        del new["answer"]
    file.write_text("".join(json.dumps(row) + "\n" for row in more))
    own = "rewards.known={fn: trl_reward, function: 'users:known'}"
    events = said(capsys, file, *OWN, own)
    told = [event["text"] for event in events if event["event"] == "column"]
    assert len(told) == 2
    assert "\"user\" is 'ann', another type than in row 1" in told[0]
    assert '"created" is 1099511627776, beyond 32 bits' in told[1]
    figures = events[-1]["figures"]
    assert figures["rewards/known/mean"] == pytest.approx(2 / 3)
    assert figures["rewards/correct/mean"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_any_kind_of_file_is_read_and_json_lines_are_written(file, capsys, suffix):
    frame = pd.DataFrame(ROWS[:2]).rename(columns={"response": "said"})
    other = file.with_suffix(f".{suffix}")
    if suffix == "json":
        frame.to_json(other, orient="records")
    else:
        getattr(frame, f"to_{suffix}")(other, index=False)
    said(capsys, other, *OWN, "--response-column", "said", "--out", "scored.jsonl")
    rows = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert [row["length_tokens"] for row in rows] == [3, 13]
    assert [row["reward/correct"] for row in rows] == [1.0, 0.0]
    # What was written can be judged again; the data is not in it.
    error = said(capsys, "scored.jsonl", *OWN, code=2)
    assert 'the data has no column "answer"' in error


def test_the_held_out_rows_of_the_config_give_what_a_table_lacks(file, capsys):
    row = {"event": "sample", "step": 4, "prompt_index": 0, "prompt": "581+478=", "greedy": False}
    file.write_text(json.dumps(row | {"response": "#1059", "truncated": False, "reward_raw": 0}))
    events = said(capsys, file, *OWN)
    told = {event["event"]: event for event in events}
    assert told["data"]["text"] == "from data.eval, by prompt_index: answer"
    assert told["done"]["figures"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.jsonl"], "absent.jsonl: no such file"),
        (["{file}", "--out", "scored.txt"], "--out: scored.txt is neither .parquet nor .jsonl"),
        (["{file}", "--config", "absent.yaml"], "--config: absent.yaml is neither a config file"),
        (["{file}", "--config", "."], "is no run folder: it holds no config.yaml"),
        (["{file}", "--response-column", "said"], 'no column "said"; '),
        (["{file}", "shaping.lenght={{fn: length_band}}", "rewards={{}}"], "rewards: at least one"),
        (["{file}", "--out", "{file}/x.jsonl"], "cannot write "),
    ],
)
def test_a_mistake_ends_in_one_line(file, capsys, arguments, says):
    error = said(capsys, *(argument.format(file=file) for argument in arguments), *OWN, code=2)
    assert error.startswith("rljax: error: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_character_that_the_tokenizer_does_not_know_is_named_with_its_place(file, capsys):
    file.write_text(file.read_text() + json.dumps(ROWS[0] | {"response": "ü"}) + "\n")
    error = said(capsys, file, *OWN, code=2)
    assert "logged.jsonl:4: " in error
    assert error.count("\n") == 1
