"""Preferences from judged responses: which are paired, labelled, held out, left out."""

import json

import pytest

from rljax.errors import UserError
from rljax.tasks import sampled_labels, sampled_pairs

CHAT = [{"role": "user", "content": "hi"}]


def sample(index, response, correct, prompt="p", greedy=False, truncated=False):
    return {
        "prompt_index": index, "prompt": prompt, "response": response, "correct": correct,
        "greedy": greedy, "truncated": truncated,
    }  # fmt: skip


SAMPLES = [
    sample(0, "held out", True),
    sample(0, "and wrong", False),
    sample(1, "greedy", True, greedy=True),
    sample(1, "right", True),
    sample(1, "right", True),  # once more
    sample(1, "wrong", False),
    sample(1, "wrong too", False),
    sample(1, "cut off", False, truncated=True),
    sample(1, "not judged", None),
    sample(1, "", False),
    sample(2, "only wrong", False),
    sample(3, "no", False, prompt=CHAT),
    sample(3, "yes", True, prompt=CHAT),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, SAMPLES)) + "\n")
    return str(path)


def test_pairs_are_of_one_prompt_and_no_response_is_in_two(file):
    assert sampled_pairs(file, heldout=False) == [
        {"prompt": "p", "chosen": "right", "rejected": "wrong"},
        {
            "prompt": CHAT,
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        },
    ]
    assert sampled_pairs(file, heldout=True) == [
        {"prompt": "p", "chosen": "held out", "rejected": "and wrong"}
    ]


def test_every_judged_response_that_ended_is_labelled(file):
    rows = sampled_labels(file, heldout=False)
    said = [(row["completion"], row["label"]) for row in rows[:5]]
    assert said == [
        ("right", True), ("right", True), ("wrong", False), ("wrong too", False),
        ("only wrong", False),
    ]  # fmt: skip
    assert rows[5]["completion"] == [{"role": "assistant", "content": "no"}]
    assert [row["label"] for row in sampled_labels(file, heldout=True)] == [True, False]


def test_what_cannot_be_paired_is_said(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        sampled_pairs(str(tmp_path / "none.jsonl"), heldout=False)
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(SAMPLES[10]))
    with pytest.raises(UserError, match="no prompt has both correct and wrong responses"):
        sampled_pairs(str(path), heldout=False)
    with pytest.raises(UserError, match="no prompt that is held out has both"):
        sampled_pairs(str(path), heldout=True)
    for name in ("prompt_index", "prompt", "response", "greedy", "truncated", "correct"):
        path.write_text(json.dumps(SAMPLES[0] | {name: {}}))
        with pytest.raises(UserError, match=rf'samples.jsonl:1: "{name}" is {{}}, of another type'):
            sampled_pairs(str(path), heldout=False)
    path.write_text('{"prompt": "p"}')
    with pytest.raises(UserError, match=r"samples.jsonl:1: lacks correct, greedy, prompt_index"):
        sampled_labels(str(path), heldout=False)
