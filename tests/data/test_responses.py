"""Responses by the names that people have for them."""

import pytest

from rljax.data import Rows, find_responses
from rljax.errors import UserError

ASKED = [{"role": "user", "content": "1+2="}]
ANSWERED = [{"role": "assistant", "content": "#3"}]


def found(*rows, column=None, leave=()):
    return find_responses(Rows(list(rows), "logged.jsonl", [3, 7]), column, leave=leave)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "1+2=", "response": "#3"}, "1+2="),
        ({"prompt": "1+2=", "completion": "#3"}, "1+2="),
        ({"prompt": "1+2=", "text": "#3", "messages": ASKED}, "1+2="),
        ({"prompt": ASKED, "completion": ANSWERED}, ASKED),
        ({"messages": ASKED, "response": "#3"}, ASKED),
        ({"messages": [*ASKED, *ANSWERED]}, ASKED),
    ],
)
def test_prompt_and_response_are_recognised(row, prompt):
    responses = found(row)
    assert responses.texts == ["#3"]
    assert responses.rows.rows[0]["prompt"] == prompt
    assert (responses.truncated, responses.greedy) == ([False], [False])


def test_another_column_is_taken_if_it_is_named():
    row = {"prompt": "1+2=", "response": "#3", "draft": 3, "answer": "3"}
    responses = found(row, column="draft")
    assert responses.texts == ["3"]
    assert responses.rows.rows == [{"prompt": "1+2=", "response": "#3", "answer": "3"}]


@pytest.mark.parametrize(
    ("row", "truncated"),
    [
        ({"finish_reason": "length"}, True),
        ({"finish_reason": "stop"}, False),
        ({"finish_reason": None}, False),
        ({"truncated": True}, True),
        ({"truncated": "true"}, True),  # of a CSV
        ({"truncated": False, "finish_reason": "length"}, False),
        ({"truncated": None, "finish_reason": "length"}, True),
    ],
)
def test_what_the_budget_cut_off(row, truncated):
    assert found({"prompt": "a", "response": "b", **row}).truncated == [truncated]


def test_what_was_judged_before_is_no_data_and_what_else_there_is_stays():
    row = {"event": "sample", "step": 4, "prompt_index": 2, "prompt": "a", "response": ""}
    row |= {"greedy": True, "reward_raw": 1.0, "answer": "3", "truncated": True}
    responses = found(row, leave=["reward_raw"])
    assert responses.rows.rows == [{"prompt": "a", "answer": "3"}]
    assert responses.places == [{"step": 4, "prompt_index": 2}]
    assert (responses.texts, responses.greedy) == ([""], [True])


def test_what_only_has_the_name_of_a_place_is_data():
    mine = {"step": "add 1", "prompt_index": 1.5, "source": 7}
    rows = [{"prompt": "a", "response": "x", **mine}, {"prompt": "b", "response": "x", "step": 2}]
    responses = found(*rows)
    assert responses.places == [{}, {}]
    assert responses.rows.rows == [{"prompt": "a", **mine}, {"prompt": "b", "step": 2}]
    assert found({"prompt": "a", "response": "x", "step": 2**63}).places == [{}]
    rows = [{"prompt": "a", "response": "x", "prompt_index": index} for index in (None, 3)]
    assert found(*rows).places == [{}, {"prompt_index": 3}]


def test_the_responses_to_one_prompt_are_a_group():
    rows = [{"prompt": p, "response": "x"} for p in ("a", "b", "a")]
    assert found(*rows).groups() == [0, 1, 0]
    rows = [row | {"step": step} for row, step in zip(rows, (0, 0, 4), strict=True)]
    assert found(*rows).groups() == [0, 1, 2]  # two evaluations are two groups
    rows = [{"prompt": "a", "response": "x", "prompt_index": index} for index in (5, 6, 5)]
    assert found(*rows).groups() == [0, 1, 0]  # and so is a prompt that the data has twice


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"question": "a", "response": "b"}], "there are question, response"),
        ([{"prompt": "a", "answer": "b"}], "a response, completion or text, or another as --resp"),
        ([{"prompt": "a", "response": None}], 'logged.jsonl:3: "response": expected text, got No'),
        ([{"prompt": "a", "response": "b"}, {"response": "b"}], 'jsonl:7: "prompt" is missing'),
        ([{"messages": ASKED}], 'jsonl:3: "messages": the last message is no answer of the assist'),
        ([{"prompt": "a", "response": {}}], '"response": expected text, got {}'),
        ([{"prompt": "a", "response": "b", "truncated": "yes"}], '"truncated": expected true or'),
        ([{"prompt": 7, "response": "b"}], '"prompt": expected text or chat messages, got 7'),
    ],
)
def test_what_is_wrong_is_named_with_its_place(rows, says):
    with pytest.raises(UserError) as told:
        found(*rows)
    assert says in str(told.value)


def test_a_column_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(UserError, match='no column "respons"; did you mean "response"'):
        found({"prompt": "a", "response": "b"}, column="respons")
