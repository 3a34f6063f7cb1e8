"""The server, asked by the official client, and by one that speaks HTTP itself."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from endpoints import TOKENS, engine_of, listening

from rljax.endpoint import app as module
from rljax.endpoint.app import MOST_BYTES, make_app
from rljax.tasks import character_tokenizer

PROMPT = "12+34="
ASK = {"model": "model", "prompt": PROMPT, "seed": 5, "max_tokens": 12}
TURNS = {"model": "model", "messages": [{"role": "user", "content": "1+"}], "seed": 1}


def http(address, path, body=None, headers=None, method=None):
    """(status, headers, body as JSON)"""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    headers = {"content-type": "application/json"} | (headers or {})
    request = urllib.request.Request(address + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            status, told, text = reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        status, told, text = error.code, error.headers, error.read()
    return status, told, json.loads(text) if text else None


@pytest.fixture(scope="module")
def whole(client):
    return client.completions.create(**ASK, logprobs=2, n=3)


def test_a_completion(whole):
    assert (whole.object, whole.model, whole.id[:5]) == ("text_completion", "model", "cmpl-")
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.text for choice in whole.choices}) == 3
    drawn = sum(len(choice.logprobs.tokens) for choice in whole.choices)
    usage = whole.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), drawn)
    assert usage.total_tokens == len(PROMPT) + drawn


def test_usage_counts_the_eos_and_the_text_does_not_have_it(client):
    """As vLLM does, and as training counts lengths."""
    replies = [
        client.completions.create(**ASK | {"seed": seed, "max_tokens": TOKENS}, logprobs=0)
        for seed in range(20)
    ]
    finished = {reply.choices[0].finish_reason: reply for reply in replies}
    ended, cut = finished["stop"], finished["length"]
    assert ended.choices[0].stop_reason is cut.choices[0].stop_reason is None
    assert ended.choices[0].logprobs.tokens[-1] == "<eos>"
    assert "<eos>" not in ended.choices[0].text
    told = ended.choices[0].logprobs
    assert told.top_logprobs[-1] == {"<eos>": told.token_logprobs[-1]}  # logprobs=0: it alone
    assert ended.usage.completion_tokens == len(ended.choices[0].logprobs.tokens) < TOKENS
    assert cut.usage.completion_tokens == TOKENS


def test_logprobs_of_completions(whole):
    for choice in whole.choices:
        told = choice.logprobs
        assert all(logprob <= 0 for logprob in told.token_logprobs)
        offset = 0
        for token, logprob, top, at in zip(
            told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset, strict=True
        ):
            assert at == offset
            assert top[token] == logprob  # beside the two most probable ones
            assert 2 <= len(top) <= 3
            offset += 0 if token.startswith("<") and len(token) > 1 else len(token)


def test_a_stream_tells_the_same(client, whole):
    parts = list(
        client.completions.create(
            **ASK, n=3, logprobs=2, stream=True, stream_options={"include_usage": True}
        )
    )
    assert parts[-1].choices == []
    assert parts[-1].usage == whole.usage
    assert all(part.usage is None for part in parts[:-1])
    assert len({part.id for part in parts}) == 1
    for choice in whole.choices:
        own = [part.choices[0] for part in parts[:-1] if part.choices[0].index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        assert [t for part in own for t in part.logprobs.tokens] == choice.logprobs.tokens
        assert [part.finish_reason for part in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == choice.finish_reason


def test_a_stream_ends_with_done(server):
    request = urllib.request.Request(
        server[0] + "/v1/completions",
        json.dumps({**ASK, "stream": True}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        *events, done, rest = reply.read().split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert all("usage" not in json.loads(event.removeprefix(b"data: ")) for event in events)


def test_chat(client):
    reply = client.chat.completions.create(**TURNS, logprobs=True, top_logprobs=2)
    (choice,) = reply.choices
    assert (reply.object, reply.id[:9], choice.message.role) == (
        *("chat.completion", "chatcmpl-", "assistant"),
    )
    rendered = "user: 1+\nassistant:"
    assert reply.usage.prompt_tokens == len(rendered)
    same = client.completions.create(
        model="model", prompt=character_tokenizer()(rendered).input_ids, seed=1
    )
    assert choice.message.content == same.choices[0].text
    for token in choice.logprobs.content:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.logprob


def test_chat_in_a_stream(client):
    whole = client.chat.completions.create(**TURNS, n=2)
    parts = [part.choices[0] for part in client.chat.completions.create(**TURNS, n=2, stream=True)]
    for choice in whole.choices:
        own = [part for part in parts if part.index == choice.index]
        assert [part.delta.role for part in own] == ["assistant"] + [None] * (len(own) - 1)
        assert "".join(part.delta.content for part in own) == choice.message.content
        assert own[-1].finish_reason == choice.finish_reason


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_tokens(client, whole, stream):
    text = whole.choices[0].text
    stop = text[4:7]  # of three tokens
    reply = client.completions.create(**ASK, n=1, stop=["~~", stop], stream=stream)
    parts = [part.choices[0] for part in reply] if stream else reply.choices
    assert "".join(part.text for part in parts) == text[: text.index(stop)]
    assert parts[-1].finish_reason == "stop"
    assert parts[-1].stop_reason == stop  # vLLM's
    if not stream:
        assert reply.usage.completion_tokens < 12


def test_the_models(client, server):
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("model", "rljax")
    assert client.models.retrieve("model").id == "model"
    assert http(server[0], "/health")[0] == 200


def test_many_at_once_are_each_themselves_alone(client):
    def one(seed):
        asked = {**ASK, "prompt": PROMPT[: 1 + seed % 6], "seed": seed, "temperature": seed % 3 / 2}
        reply = client.completions.create(**asked)
        return reply.choices[0].text, reply.usage.completion_tokens

    alone = [one(seed) for seed in range(20)]
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(20))) == alone


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/completions", b"{", 400, "the body is not valid JSON"),
        ("/v1/completions", {**ASK, "temperature": -1}, 400, "temperature: input should be"),
        ("/v1/completions", {**ASK, "model": "gpt"}, 404, 'there is no "gpt" here'),
        ("/v1/completions", {**ASK, "prompt": "1" * 25}, 400, "a prompt of 25 tokens"),
        ("/v1/completions", b" " * (MOST_BYTES + 1), 413, "the body is larger than"),
        ("/v1/chat/completions", {**TURNS, "tools": [1]}, 400, "tools: this server does not"),
        ("/v1/embeddings", ASK, 404, "POST /v1/embeddings: not found"),
        ("/v1/completions", None, 405, "GET /v1/completions: method not allowed"),
        ("/v1/models/gpt", None, 404, 'there is no "gpt" here'),
    ],
)
def test_errors_are_as_clients_expect_them(server, path, body, status, said):
    got, _, reply = http(server[0], path, body)
    assert got == status
    assert reply.keys() == {"error"}
    assert reply["error"].keys() == {"message", "type", "param", "code"}
    assert reply["error"]["type"] == "invalid_request_error"
    assert said in reply["error"]["message"]


def test_the_client_raises_what_it_should(client):
    with pytest.raises(openai.NotFoundError, match="gpt"):
        client.completions.create(**{**ASK, "model": "gpt"})
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**ASK, n=0)
    assert caught.value.param == "n"


def test_a_page_in_a_browser_cannot_ask_without_being_allowed_to(server):
    status, _, reply = http(server[0], "/v1/completions", ASK, {"content-type": "text/plain"})
    assert status == 415
    assert 'application/json is needed, got "text/plain"' in reply["error"]["message"]


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_work(server, stream, monkeypatch):
    address, engine = server
    decode, gate = engine._programs.decode, threading.Semaphore(2)

    def slow(*arguments):
        gate.acquire(timeout=20)
        return decode(*arguments[:-1], np.int32(1))  # a token at a time

    monkeypatch.setattr(engine, "_programs", engine._programs._replace(decode=slow))
    port = int(address.rpartition(":")[2])
    body = json.dumps({**ASK, "n": 4, "stream": stream, "max_tokens": TOKENS}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        assert until(lambda: engine._open == 4)
        if stream:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert until(lambda: None not in engine._at)
        responses = list(engine._at)
    assert until(lambda: responses[0].job.cancelled)
    gate.release(TOKENS)
    assert until(lambda: engine._open == 0)
    assert max(response.drawn for response in responses) <= 3 < TOKENS


def test_a_request_that_takes_long_to_read_holds_nobody_up(server, monkeypatch):
    begun, go_on, went_on = threading.Event(), threading.Event(), []
    read = module.read_request

    def slow(*arguments, **keywords):
        begun.set()
        went_on.append(go_on.wait(3))
        return read(*arguments, **keywords)

    monkeypatch.setattr(module, "read_request", slow)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(http, server[0], "/v1/completions", ASK)
        assert begun.wait(30)
        assert http(server[0], "/health")[0] == 200
        go_on.set()
        assert asked.result()[0] == 200
    assert went_on == [True]


def test_overload_is_told(folder):
    engine, serving = engine_of(folder, most_waiting=0)  # whose thread does not run
    with listening(make_app(engine, serving)) as address:
        status, headers, reply = http(address, "/v1/completions", {**ASK, "n": 5})
        assert (status, headers["retry-after"]) == (503, "1")
        assert reply["error"]["type"] == "server_error"
        assert "the server is overloaded: 0 responses are under way" in reply["error"]["message"]
        assert http(address, "/health")[0] == 503


class Broken:
    """A middleware that fails."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["path"] == "/broken":
            raise RuntimeError("not\nhere")
        await self.app(scope, receive, send)


class Named:
    """A middleware that says that it was there."""

    name = b"inner"

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def named(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-by", self.name)]}
            await send(message)

        await self.app(scope, receive, named)


class Outer(Named):
    name = b"outer"


def test_a_key_and_middleware(folder, capsys):
    engine, serving = engine_of(folder)
    around = [Broken, Named, Outer]
    with listening(make_app(engine, serving, api_key="k-123", middleware=around)) as address:
        for given in ({}, {"authorization": "Bearer k-12"}, {"authorization": "k-123"}):
            for path, body in (("/v1/models", None), ("/v1/completions", ASK)):
                status, _, reply = http(address, path, body, given)
                assert (status, reply["error"]["code"]) == (401, "invalid_api_key")
        right = {"authorization": "Bearer k-123"}
        status, headers, _ = http(address, "/v1/models", None, right)
        assert (status, headers.get_all("x-by")) == (200, ["inner", "outer"])
        status, _, reply = http(address, "/broken")
        assert (status, reply["error"]["type"]) == (500, "server_error")
    assert capsys.readouterr().err == "rljax: error: RuntimeError: not here\n"


def test_a_fault_in_the_middle_of_a_stream(server, monkeypatch, capsys):
    address, engine = server
    decode, calls = engine._programs.decode, []

    def fails(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("gone")
        return decode(*arguments[:-1], np.int32(1))

    monkeypatch.setattr(engine, "_programs", engine._programs._replace(decode=fails))
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(**ASK, stream=True)
        with pytest.raises(openai.APIError, match="the engine failed"):
            list(stream)
    assert "RuntimeError: gone" in capsys.readouterr().err
