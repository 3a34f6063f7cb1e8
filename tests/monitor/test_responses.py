"""What is read of a response: the same wherever it is cut, and nothing that is not there."""

import json

import pytest
from answers import body_of, cut, events_of, stream_of
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax.monitor import responses
from rljax.monitor.responses import Completion, Reader

# Text that looks like what is looked for, and characters of several bytes.
TEXTS = (
    ['{"finish_reason": "stop"}', ' "usage": {"completion_tokens": 7}\r\n'],
    ["né", "é\ndata: 數"],
)
CUTS = st.lists(st.integers(0, 10_000), max_size=12)
SHAPES = [
    {"separators": separators, "nulls": nulls}
    for separators in ((",", ":"), (", ", ": "))
    for nulls in (False, True)
]


def read(parts, streamed=True, texts=False, keeps_text=True):
    reader = Reader(streamed, keeps_text=keeps_text)
    for part in parts:
        reader.feed([part])
    return reader.told(texts=texts)


@few
@given(places=CUTS, end=st.sampled_from([b"\n", b"\r\n"]), shape=st.sampled_from(SHAPES))
def test_a_stream_tells_the_same_wherever_it_is_cut(places, end, shape):
    data = stream_of(events_of(TEXTS, ("stop", "length"), usage=9, **shape), end)
    told = read(cut(data, places), keeps_text=False)
    ended = [Completion(0, "stop", True), Completion(1, "length", False)]
    assert told == ("cmpl-1", "m", ended, 2, 9)
    told = read(cut(data, places), texts=True)
    assert [one.text for one in told.completions] == ["".join(parts) for parts in TEXTS]
    assert told.usage_tokens == 9


@few
@given(places=CUTS)
def test_a_body_tells_the_same_wherever_it_is_cut(places):
    choices = [{"text": "né", "finish_reason": "stop"}, {"text": "x", "finish_reason": "length"}]
    told = read(cut(body_of(choices, usage=5), places), streamed=False, texts=True)
    ended = [Completion(0, "stop", True, "né"), Completion(1, "length", False, "x")]
    assert told == ("cmpl-1", "m", ended, 2, 5)


def test_of_a_long_stream_little_is_kept():
    lines = events_of([["word"] * 5000], ["stop"], usage=5000)
    reader = Reader(True, keeps_text=False)
    for line in lines:
        reader.feed([line, b"\n\n"])
    assert reader.told().usage_tokens == 5000
    assert sum(map(len, (*reader._kept, *reader._end))) < 1000


def test_a_line_may_end_with_a_carriage_return_alone():
    data = stream_of(events_of([["a", "b"]], ["stop"], usage=3), b"\r")
    assert read([data[:50], data[50:]], texts=True).completions[0].text == "ab"
    assert read([data[:50], data[50:]], keeps_text=False).usage_tokens == 3


@pytest.mark.parametrize("reason", [None, "abort", "content_filter"])
def test_what_did_not_end_by_itself_is_not_told(reason):
    assert read([stream_of(events_of([["a"]], [reason], usage=3))]) is None
    assert read([body_of([{"text": "a", "finish_reason": reason}], 3)], streamed=False) is None
    beside = events_of([["a"], ["b"]], ["stop", reason or "error"], usage=3)
    told = read([stream_of(beside)])
    assert ([one.index for one in told.completions], told.choices) == ([0], 2)


def test_an_error_within_a_stream_ends_no_completion():
    lines = events_of([["a"]], [None])
    assert read([stream_of([*lines[:-1], b'data: {"error": {"message": "died"}}'])]) is None


@pytest.mark.parametrize(
    ("choice", "by_eos"),
    [
        ({"finish_reason": "stop", "stop_reason": None}, True),
        ({"finish_reason": "stop", "stop_reason": 151645}, True),  # a stop token
        ({"finish_reason": "stop", "stop_reason": "\n\n"}, False),  # a stop string
        ({"finish_reason": "length", "stop_reason": None}, False),
    ],
)
def test_whether_an_eos_ended_it(choice, by_eos):
    (found,) = read([body_of([choice])], streamed=False).completions
    assert found.by_eos == by_eos


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": [{"function": {"arguments": "{}"}}]},
        {"content": "4", "reasoning": "2 + 2"},
        {"content": "4", "reasoning_content": "2 + 2"},
    ],
)
def test_no_text_is_told_of_what_is_not_all_text(message):
    choice = {"message": message, "finish_reason": "stop"}
    (found,) = read([body_of([choice])], streamed=False, texts=True).completions
    assert found.text is None


def test_no_text_is_told_of_a_content_in_parts():
    choice = {"message": {"content": [{"type": "text", "text": "a"}]}, "finish_reason": "stop"}
    (found,) = read([body_of([choice])], streamed=False, texts=True).completions
    assert found.text is None


@pytest.mark.parametrize("tokens", [-5, True, "5", 2.5])
def test_a_usage_that_is_no_number_of_tokens_is_none(tokens):
    body = body_of([{"text": "a", "finish_reason": "stop"}], 7).replace(
        b'"completion_tokens": 7', b'"completion_tokens": ' + json.dumps(tokens).encode()
    )
    assert read([body], streamed=False).usage_tokens is None


def test_half_a_character_in_a_name_is_replaced():
    body = body_of([{"text": "a", "finish_reason": "stop"}], 3).replace(b'"m"', b'"m\\ud800"')
    told = read([body], streamed=False)
    assert told.model == "m?"


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>", b"[1]", b'"x"', b'{"choices": 3}', b"\xff", b'{"a":' + b"[" * 200_000],
)
def test_what_no_such_server_would_say_is_an_error(data):
    with pytest.raises((AttributeError, RecursionError, TypeError, ValueError)):
        read([data], streamed=False)


def test_what_is_encoded_or_too_large_is_not_read(monkeypatch):
    reader = Reader(False, keeps_text=True, encoded=True)
    reader.feed([body_of([{"text": "a", "finish_reason": "stop"}], 3)])
    with pytest.raises(ValueError, match="encoded"):
        reader.told()
    monkeypatch.setattr(responses, "MOST_BODY", 600)
    large = body_of([{"text": "a" * 600, "finish_reason": "stop"}], 3)
    with pytest.raises(ValueError, match="too large"):
        read([large], streamed=False)
    beside = stream_of(events_of([["a"]], ["stop"])[:-1] + events_of([["b"] * 9], ["stop"]))
    with pytest.raises(ValueError, match="too large"):  # the part from the first end on
        read(cut(beside, range(0, 2000, 100)), keeps_text=False)
    stream = stream_of(events_of([["a"] * 9], ["stop"], usage=10))
    assert read(cut(stream, range(0, 2000, 100))).usage_tokens == 10
    with pytest.raises(ValueError, match="too large"):
        read(cut(stream, range(0, 2000, 100)), texts=True)
