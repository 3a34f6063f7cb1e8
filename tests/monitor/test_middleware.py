"""The middleware by ASGI alone: it changes nothing, counts what it should, and never breaks."""

import asyncio
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from answers import body_of, cut, events_of, series, stream_of
from builders import few
from folders import tokenizer_of
from hypothesis import given
from hypothesis import strategies as st

from rljax.monitor import LengthMonitor, judging, middleware
from rljax.monitor.responses import Reader

CONFIG = """
length: {min_tokens: 3, max_tokens: 6}
sampling: {max_tokens: 10}
shaping: {length: {fn: length_band, weight: 0.5}, kl: {fn: kl_penalty}}
"""
JSON = [(b"content-type", b"application/json"), (b"x-own", b"1")]
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("monitor") / "config.yaml"
    path.write_text(CONFIG)
    return path


def messages(parts, headers=JSON, status=200):
    """What an application sends."""
    start = {"type": "http.response.start", "status": status, "headers": headers}
    bodies = [{"type": "http.response.body", "body": part, "more_body": True} for part in parts]
    return [start, *bodies, {"type": "http.response.body", "body": b""}]


def answering(sent):
    async def app(scope, receive, send):
        for message in sent:
            await send(message)

    return app


def ask(app, path="/v1/completions", method="POST", **scope):
    """The messages that the application answers a request with."""
    got = []

    async def send(message):
        got.append(message)

    request = {"type": "http", "method": method, "path": path, "root_path": "", **scope}
    asyncio.run(app(request, None, send))
    return got


def metrics(monitor, path="/rljax/metrics", **scope) -> dict[str, float]:
    """What the middleware tells, after all that has passed through it."""
    start, body = ask(monitor, path, "GET", **scope)
    assert start["status"] == 200
    return series(body["body"].decode())


def answer(tokens, reason="stop"):
    return body_of([{"text": "x", "finish_reason": reason}], tokens)


def judged(config, sent, **keywords):
    monitor = LengthMonitor(answering(sent), config=config, **keywords)
    assert ask(monitor) == sent
    return metrics(monitor)


@few
@given(
    places=st.lists(st.integers(0, 10_000), max_size=8),
    end=st.sampled_from([b"\n", b"\r\n"]),
    streamed=st.booleans(),
    tokens=st.integers(0, 12),
    reason=st.sampled_from(["stop", "length"]),
)
def test_all_is_passed_through_as_it_is_and_counted(config, places, end, streamed, tokens, reason):
    lines = events_of([["né", "數"]], [reason], usage=tokens)
    data = stream_of(lines, end) if streamed else answer(tokens, reason)
    sent = messages(cut(data, places), SSE if streamed else JSON)
    monitor = LengthMonitor(answering(sent), config=config)
    got = ask(monitor)
    assert all(a is b for a, b in zip(got, sent, strict=True))
    found = metrics(monitor)
    assert found["rljax_responses_total"] == 1
    assert found["rljax_length_mean"] == tokens
    violations = {
        verdict: found[f'rljax_length_violations_total{{verdict="{verdict}"}}']
        for verdict in ("long", "short", "truncated")
    }
    assert violations == {
        "long": tokens > 6,
        "short": tokens < 3,
        "truncated": reason == "length",
    }
    assert found["rljax_monitor_errors_total"] == 0


def test_figures_by_hand(config):
    lengths = [2, 4, 6, 9]

    async def app(scope, receive, send):
        tokens = lengths[int(scope["query_string"])]
        for message in messages([answer(tokens, "length" if tokens == 9 else "stop")]):
            await send(message)

    monitor = LengthMonitor(app, config=config)
    for at in range(4):
        ask(monitor, query_string=str(at).encode())
    found = metrics(monitor)
    expected = {
        "rljax_responses_total": 4,
        "rljax_length_mean": 5.25,
        "rljax_length_std": np.std(lengths),
        "rljax_length_terminated_mean": 4,
        "rljax_response_length_min": 2,
        "rljax_response_length_max": 9,
        "rljax_response_length_p50": 5,
        "rljax_response_length_p95": np.percentile(lengths, 95),
        "rljax_in_band_ratio": 0.5,
        "rljax_truncated_ratio": 0.25,
        "rljax_length_penalty_mean": 0.5 * ((1 / 3) ** 2 + 1) / 4,
        "rljax_length_band_min_tokens": 3,
        "rljax_length_band_max_tokens": 6,
        'rljax_length_violations_total{verdict="short"}': 1,
        'rljax_length_violations_total{verdict="long"}': 1,
        'rljax_length_violations_total{verdict="truncated"}': 1,
        'rljax_response_length_tokens_bucket{le="2.0"}': 1,  # the band is between
        'rljax_response_length_tokens_bucket{le="6.0"}': 3,
        'rljax_response_length_tokens_bucket{le="+Inf"}': 4,
        "rljax_response_length_tokens_count": 4,
        "rljax_response_length_tokens_sum": 21,
        "rljax_monitor_seconds_count": 4,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    assert 0 < found["rljax_monitor_seconds_sum"] < 1


def test_the_gauges_are_of_the_last_responses(config):
    bodies = iter([answer(100), answer(4), answer(6)])

    async def app(scope, receive, send):
        for message in messages([next(bodies)]):
            await send(message)

    monitor = LengthMonitor(app, config=config, window=2)
    for _ in range(3):
        ask(monitor)
    found = metrics(monitor)
    assert (found["rljax_length_mean"], found["rljax_responses_total"]) == (5, 3)


@pytest.mark.parametrize(
    ("request_line", "sent", "counted"),
    [
        ({"path": "/v1/chat/completions"}, messages([answer(4)]), 1),
        ({"path": "/proxy/v1/completions/", "root_path": "/proxy"}, messages([answer(4)]), 1),
        ({"path": "/v1/completions", "method": "OPTIONS"}, messages([answer(4)]), 0),
        ({"path": "/v1/embeddings"}, messages([answer(4)]), 0),
        ({"path": "/v1/completions/render"}, messages([answer(4)]), 0),
        ({}, messages([answer(4)], status=400), 0),
        ({}, messages([answer(4)], status=500), 0),
    ],
)
def test_what_is_counted(config, request_line, sent, counted):
    monitor = LengthMonitor(answering(sent), config=config)
    assert ask(monitor, **request_line) == sent
    found = metrics(monitor)
    assert found.get("rljax_responses_total", 0) == counted
    assert all(not count for name, count in found.items() if "unmeasured" in name)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (messages([answer(4)], [*JSON, (b"Content-Encoding", b"gzip")]), "unreadable"),
        (messages([b"<html>"]), "unreadable"),
        (messages([b'{"choices":' + b"[" * 200_000]), "unreadable"),
        (messages([stream_of(events_of([["a"]], [None]))], SSE), "unfinished"),
        (messages([stream_of([])], [(b"content-type", b"Text/Event-Stream")]), "unfinished"),
        (messages([answer(4)])[:-1], "unfinished"),  # the client went away
        (messages([stream_of(events_of([["a"]], ["stop"]))], SSE), "uncounted"),
        (messages([body_of([{"text": "a", "finish_reason": "stop"}] * 2, 8)]), "uncounted"),
    ],
)
def test_what_cannot_be_judged_is_counted_by_its_reason(config, sent, reason):
    found = judged(config, sent)
    count = 2 if sent[1]["body"].count(b'"index": 1') else 1
    assert found[f'rljax_unmeasured_responses_total{{reason="{reason}"}}'] == count
    assert sum(n for name, n in found.items() if "unmeasured" in name) == count
    assert "rljax_responses_total" not in found


def test_an_application_that_fails_or_is_stopped_fails_as_before(config):
    async def app(scope, receive, send):
        for message in messages([answer(4)])[:-1]:
            await send(message)
        raise scope["error"]

    monitor = LengthMonitor(app, config=config)
    for error in (KeyError("own"), asyncio.CancelledError()):
        with pytest.raises(type(error)) as caught:
            ask(monitor, error=error)
        assert caught.value is error
    assert metrics(monitor)['rljax_unmeasured_responses_total{reason="unfinished"}'] == 2


def test_a_client_that_fails_the_send_fails_the_application(config):
    async def app(scope, receive, send):
        await send(messages([])[0])

    async def send(message):
        raise OSError("gone")

    monitor = LengthMonitor(app, config=config)
    scope = {"type": "http", "method": "POST", "path": "/v1/completions"}
    with pytest.raises(OSError, match="gone"):
        asyncio.run(monitor(scope, None, send))


# ---- tokens counted by a tokenizer


def words(texts):
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize(
    ("choices", "lengths"),
    [
        ([{"text": "a b c", "finish_reason": "stop"}] * 2, [4, 4]),  # with the EOS
        ([{"text": "a b c", "finish_reason": "length"}] * 2, [3, 3]),
        ([{"text": "a", "finish_reason": "stop", "stop_reason": "\n"}], [1]),
        ([{"message": {"content": "a b"}, "finish_reason": "stop"}], [3]),
        ([{"text": "", "finish_reason": "stop"}], [1]),
    ],
)
def test_the_tokenizer_counts_what_the_server_did_not(config, choices, lengths):
    usage = 99 if len(choices) > 1 else None  # of all together: not told
    found = judged(config, messages([body_of(choices, usage)]), tokenizer=words)
    assert found["rljax_responses_total"] == len(lengths)
    assert found["rljax_length_mean"] == np.mean(lengths)


def test_the_tokenizer_counts_streams_and_usage_goes_first(config):
    texts = [["a ", "b"], ["c ", "d ", "e"]]
    sent = messages(cut(stream_of(events_of(texts, ["stop"] * 2)), range(0, 900, 70)), SSE)
    found = judged(config, sent, tokenizer=words)
    assert (found["rljax_responses_total"], found["rljax_response_length_tokens_sum"]) == (2, 3 + 4)
    told = messages([stream_of(events_of([["a b"]], ["stop"], usage=6))], SSE)
    assert judged(config, told, tokenizer=words)["rljax_length_mean"] == 6


def test_no_tokenizer_counts_what_is_not_all_text(config):
    choice = {"message": {"content": "a", "reasoning": "b c d"}, "finish_reason": "stop"}
    found = judged(config, messages([body_of([choice])]), tokenizer=words)
    assert found['rljax_unmeasured_responses_total{reason="uncounted"}'] == 1


def test_a_tokenizer_is_read_from_a_folder(config, tmp_path):
    tokenizer = tokenizer_of("<pad>", "<eos>", eos_token="<eos>", pad_token="<pad>")
    tokenizer.save_pretrained(tmp_path)
    text = "1234"
    sent = messages([body_of([{"text": text, "finish_reason": "stop"}])])
    expected = len(tokenizer.encode(text, add_special_tokens=False)) + 1
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        assert judged(config, sent, tokenizer=source)["rljax_length_mean"] == expected


def test_that_of_a_runs_policy_is_taken_if_it_is_there(tmp_path):
    (tmp_path / "config.yaml").write_text("length: {min_tokens: 3, max_tokens: 6}")
    sent = messages([body_of([{"text": "1234", "finish_reason": "stop"}])])
    uncounted = 'rljax_unmeasured_responses_total{reason="uncounted"}'
    assert judged(tmp_path, sent)[uncounted] == 1
    tokenizer_of("<pad>", "<eos>", eos_token="<eos>").save_pretrained(tmp_path / "policy")
    assert judged(tmp_path, sent)["rljax_responses_total"] == 1


# ---- what operators are told


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, logger="rljax.monitor")
    return lambda level="WARNING": [
        record.getMessage() for record in caplog.records if record.levelname == level
    ]


def test_the_policy_is_told_at_the_start(config, told):
    LengthMonitor(None, config=config)
    assert told("INFO") == ["rljax: responses are judged by 3 to 6 tokens; costs: length"]
    (warning,) = told()
    assert warning.startswith("rljax: shaping.kl is not applied in serving: kl_penalty needs")


def test_violations_are_logged_but_not_one_by_one(config, told, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(judging.time, "monotonic", lambda: now[0])
    monitor = LengthMonitor(answering(messages([answer(9)])), config=config)
    for _ in range(4):
        ask(monitor)
    monitor.settle()
    now[0] += 1
    ask(monitor)
    monitor.settle()
    _, first, second = told()
    assert first == (
        "rljax: a response of 9 tokens is long: the band is 3 to 6 "
        "(model 'm', id 'cmpl-1', choice 0)"
    )
    assert second == f"{first}; 3 more since the last such line"


def test_the_log_has_every_violation_and_no_text_unless_asked(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-s3cr3t")
    choices = [{"text": f"né s3cr3t-s3cr3t {i}", "finish_reason": "length"} for i in range(2)]
    sent = messages([body_of(choices)])
    for text in (False, True):
        keywords = {"tokenizer": words, "log": tmp_path / f"{text}.jsonl", "text": text}
        judged(config, sent, **keywords)
        judged(config, messages([answer(4)]), **keywords)
        judged(config, messages([answer(1)]), **keywords)
        *both, last = map(json.loads, (tmp_path / f"{text}.jsonl").read_text().splitlines())
        assert [record["index"] for record in both] == [0, 1]
        told = {key: both[1][key] for key in ("violated", "length_tokens", "counted_by", "model")}
        assert told == {
            "violated": ["truncated"],
            "length_tokens": 3,
            "counted_by": "tokenizer",
            "model": "m",
        }
        assert (last["violated"], last["counted_by"]) == (["short"], "usage")
        np.testing.assert_allclose(last["length_cost"], 0.5 * (2 / 3) ** 2, rtol=1e-6)
        responses = [record.get("response") for record in both]
        expected = ["né [MY_TOKEN] 0", "né [MY_TOKEN] 1"] if text else [None, None]
        assert responses == expected


def test_an_id_of_the_clients_own_is_told_on_one_line(config, told):
    own = json.dumps("x\n\x1b[2J" + "y" * 5000).encode()
    sent = messages([answer(9).replace(b'"cmpl-1"', own)])
    judged(config, sent)
    warning = told()[-1]
    assert r"id 'x\n\x1b[2Jyyy" in warning
    assert warning.isprintable()
    assert len(warning) < 400


def test_a_log_that_cannot_be_written_is_told_of_once(config, told):
    monitor = LengthMonitor(answering(messages([answer(9)])), config=config, log="/dev/full")
    for _ in range(3):
        ask(monitor)
    assert metrics(monitor)['rljax_length_violations_total{verdict="long"}'] == 3
    assert told("ERROR") == ["rljax: cannot write to /dev/full: No space left on device"]


def test_what_is_not_counted_is_told_once(config, told):
    sent = messages([body_of([{"text": "a", "finish_reason": "stop"}])])
    monitor = LengthMonitor(answering(sent), config=config)
    for _ in range(2):
        ask(monitor)
    monitor.settle()
    assert [text for text in told() if "is not judged" in text] == [judging.UNCOUNTED]


# ---- what goes wrong


def broken(*_, **__):
    raise RuntimeError("s3cr3t-s3cr3t")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (middleware, "Reader"),
        (middleware.Watch, "_begin"),
        (middleware.Watch, "_hand_over"),
        (Reader, "feed"),
        (Reader, "told"),
        (judging.Judge, "conclude"),
        (judging.Tally, "add"),
    ],
)
def test_a_fault_of_its_own_breaks_nothing(config, told, monkeypatch, owner, name):
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-s3cr3t")
    monkeypatch.setattr(owner, name, broken)
    sent = messages(cut(answer(4), [20]))
    monitor = LengthMonitor(answering(sent), config=config)
    for _ in range(2):
        assert ask(monitor) == sent
    monitor.settle()
    monkeypatch.undo()
    assert metrics(monitor)["rljax_monitor_errors_total"] >= 2
    (error,) = told("ERROR")
    assert error.startswith("rljax: the length monitor failed, the server does not: RuntimeError")


def test_what_it_has_no_time_for_is_let_go(config, monkeypatch):
    monkeypatch.setattr(middleware, "MOST_WAITING", 0)
    found = judged(config, messages([answer(4)]))
    assert found['rljax_unmeasured_responses_total{reason="busy"}'] == 1


def test_streams_are_read_in_batches_and_one_that_is_lost_is_not_judged(config, monkeypatch):
    monkeypatch.setattr(middleware, "BATCH_PARTS", 3)
    parts = cut(stream_of(events_of([["a"] * 9], ["stop"], usage=10)), range(0, 2000, 60))
    assert judged(config, messages(parts, SSE))["rljax_length_mean"] == 10
    monkeypatch.setattr(middleware.LengthMonitor, "_submit", lambda self, task, *args: False)
    found = judged(config, messages(parts, SSE))
    assert found['rljax_unmeasured_responses_total{reason="busy"}'] == 1


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({}, "no config: name a YAML config or the folder of a run by RLJAX_MONITOR_CONFIG"),
        ({"config": "none.yaml"}, "cannot read the config none.yaml"),
        ({"tokenizer": "none"}, "tokenizer: no tokenizer.json at none"),
        ({"log": "none/log.jsonl"}, "cannot write to the log none/log.jsonl"),
        ({"tokenizer": 3}, "TypeError"),
        ({"window": 0}, "window: at least one response is needed, got 0"),
        (
            {"metrics": "metrics"},
            'metrics: /rljax/metrics or such, or off, is needed, got "metrics"',
        ),
    ],
)
def test_what_is_wrong_refuses_the_start_but_no_request(config, told, keywords, said):
    sent = messages([answer(4)])
    monitor = LengthMonitor(answering(sent), **({"config": config} if keywords else {}) | keywords)
    got = []

    async def start():
        async def receive():
            return {"type": "lifespan.startup"}

        async def send(message):
            got.append(message)

        await monitor({"type": "lifespan"}, receive, send)

    asyncio.run(start())
    (refusal,) = got
    assert refusal["type"] == "lifespan.startup.failed"
    assert refusal["message"].startswith("rljax: error: the length monitor cannot judge: ")
    assert said in refusal["message"]
    assert told("ERROR") == [refusal["message"]]
    assert ask(monitor) == ask(monitor, "/rljax/metrics", "GET") == sent


def test_a_start_that_nothing_refuses_is_the_applications(config):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)

    for kind in ("lifespan", "websocket"):
        asyncio.run(LengthMonitor(app, config=config)({"type": kind}, None, None))
    assert [scope["type"] for scope in scopes] == ["lifespan", "websocket"]


def test_the_environment_says_what_is_not_given(config, tmp_path, monkeypatch):
    for name, value in {
        "CONFIG": str(config),
        "LOG": str(tmp_path / "log.jsonl"),
        "TEXT": "1",
        "METRICS": "/own",
    }.items():
        monkeypatch.setenv(f"RLJAX_MONITOR_{name}", value)
    monitor = LengthMonitor(answering(messages([answer(9)])))
    ask(monitor)
    assert metrics(monitor, "/own")["rljax_responses_total"] == 1
    assert metrics(monitor, "/proxy/own", root_path="/proxy")["rljax_responses_total"] == 1
    assert json.loads((tmp_path / "log.jsonl").read_text())["response"] == "x"
    for off in ("off", ""):
        monkeypatch.setenv("RLJAX_MONITOR_METRICS", off)
        assert ask(LengthMonitor(answering([])), "/rljax/metrics", "GET") == []


def test_models_are_told_apart_up_to_a_number(config, monkeypatch):
    monkeypatch.setattr("rljax.monitor.tally.MOST_MODELS", 2)
    names = iter(["a", "b", "c", "d", "a"])

    async def app(scope, receive, send):
        body = answer(4).replace(b'"m"', json.dumps(next(names)).encode())
        for message in messages([body]):
            await send(message)

    monitor = LengthMonitor(app, config=config)
    for _ in range(5):
        ask(monitor)
    found = metrics(monitor)
    counts = {name: n for name, n in found.items() if name.startswith("rljax_responses_total")}
    assert sorted(counts.values()) == [1, 2, 2]
    assert counts['rljax_responses_total{model="others"}'] == 2


def test_it_needs_neither_jax_nor_most_packages(config):
    """As after ``pip install --no-deps rljax``, beside what a server of completions has."""
    absent = (
        *("jax", "jaxlib", "flax", "optax", "orbax", "chex", "grain", "transformers", "pydantic"),
        *("rich", "datasets", "pyarrow", "safetensors", "matplotlib", "jinja2", "tokenizers"),
        *("starlette", "uvicorn", "fastapi"),
    )
    code = f"""
import asyncio, sys
for name in {absent}:
    sys.modules[name] = None
from rljax.monitor import LengthMonitor

async def app(scope, receive, send):
    for message in {messages([answer(9)])}:
        await send(message)

async def send(message):
    sent.append(message)

sent = []
monitor = LengthMonitor(app, config={str(config)!r})
asyncio.run(monitor({{"type": "http", "method": "POST", "path": "/v1/completions"}}, None, send))
asyncio.run(monitor({{"type": "http", "method": "GET", "path": "/rljax/metrics"}}, None, send))
assert b'verdict="long"}} 1.0' in sent[-1]["body"], sent
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is long: the band is 3 to 6" in found.stderr  # with no logging set up
