"""The middleware in real servers of three kinds, asked by OpenAI's client and by bare sockets."""

import contextlib
import importlib
import inspect
import json
import socket
import threading
import time
import urllib.request

import fastapi
import openai
import pytest
import uvicorn
from answers import HEAD, body_of, events_of, series, stream_of
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from rljax.monitor import LengthMonitor

PATHS = ("/v1/completions", "/v1/chat/completions")
WORDS = ["one ", "two ", "数", "é"]
SSE = "text/event-stream"


def answer(asked):
    """The body of an answer, or the parts of a stream. A response has ``max_tokens`` tokens."""
    tokens, n = asked["max_tokens"], asked.get("n", 1)
    reason = "length" if tokens >= 9 else "stop"
    if asked.get("stream"):
        usage = n * tokens if (asked.get("stream_options") or {}).get("include_usage") else None
        lines = events_of([WORDS] * n, [reason] * n, usage)
        return [stream_of([line]) for line in lines]
    message = {"role": "assistant", "content": "".join(WORDS)}
    text = {"message": message} if "messages" in asked else {"text": message["content"]}
    return json.loads(body_of([{**text, "finish_reason": reason}] * n, n * tokens))


def endless(parts):
    """The first parts, and the one before the last again and again."""
    yield from parts[:3]
    while True:
        time.sleep(0.005)
        yield parts[1]


def respond(asked):
    """A Starlette response, which FastAPI's are."""
    if asked["model"] != HEAD["model"]:
        return JSONResponse({"error": {"message": "no such model", "code": 404}}, 404)
    found = answer(asked)
    if isinstance(found, dict):
        return JSONResponse(found)
    return StreamingResponse(
        endless(found) if asked.get("user") == "endless" else found, 200, {}, SSE
    )


def with_starlette(**monitored):
    async def endpoint(request):
        return respond(await request.json())

    routes = [Route(path, endpoint, methods=["POST"]) for path in PATHS]
    return Starlette(
        routes=routes, middleware=[Middleware(LengthMonitor, **monitored)] if monitored else []
    )


def with_fastapi(**monitored):
    """As vLLM adds a middleware."""
    app = fastapi.FastAPI()

    async def endpoint(asked: dict):
        return respond(asked)

    for path in PATHS:
        app.post(path)(endpoint)
    if monitored:
        app.add_middleware(LengthMonitor, **monitored)
    return app


def with_asgi(**monitored):
    """No framework: each event in two messages."""

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        asked = b""
        more = True
        while more:
            message = await receive()
            asked, more = asked + message.get("body", b""), message.get("more_body")
        asked = json.loads(asked)
        wrong = asked["model"] != HEAD["model"]
        found = {"error": {"message": "no such model"}} if wrong else answer(asked)
        parts = [json.dumps(found).encode()] if isinstance(found, dict) else found
        kind = b"application/json" if isinstance(found, dict) else SSE.encode()
        start = {"status": 404 if wrong else 200, "headers": [(b"Content-Type", kind)]}
        await send({"type": "http.response.start", **start})
        for part in parts:
            for half in (part[:9], part[9:]):
                await send({"type": "http.response.body", "body": half, "more_body": True})
        await send({"type": "http.response.body"})

    return LengthMonitor(app, **monitored) if monitored else app


KINDS = {"starlette": with_starlette, "fastapi": with_fastapi, "asgi": with_asgi}


@contextlib.contextmanager
def serving(app):
    """The port of a server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.005)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module", params=KINDS)
def ports(request, tmp_path_factory):
    """Of a server without the middleware, and of one with it."""
    config = tmp_path_factory.mktemp("server") / "config.yaml"
    config.write_text("length: {min_tokens: 3, max_tokens: 6}")
    make = KINDS[request.param]
    with serving(make()) as bare, serving(make(config=config)) as monitored:
        yield bare, monitored


def exchange(port, path, asked) -> bytes:
    """All the bytes that a server answers, but for the date."""
    body = json.dumps(asked).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += "Content-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        found = b"".join(iter(lambda: connection.recv(65536), b""))
    return b"\r\n".join(line for line in found.split(b"\r\n") if not line.startswith(b"date:"))


def check_counts(port, expected, before=None) -> None:
    """That the counters of the monitor come to be what is expected, those at 0 left out.

    A server may be done with a response a moment later than its client."""
    deadline = time.monotonic() + 10
    while (found := counts(port, before)) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == expected


def counts(port, before=None) -> dict[str, float]:
    """The counters of the monitor, by how much they are more than before; those at 0 left out."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/rljax/metrics") as response:
        found = series(response.read().decode())
    more = {name: value - (before or {}).get(name, 0) for name, value in found.items()}
    return {name: value for name, value in more.items() if "_total" in name and value}


CHAT = {"messages": [{"role": "user", "content": "?"}]}
TEXT = {"prompt": "?"}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    "asked",
    [
        {**TEXT, "max_tokens": 4},
        {**TEXT, "max_tokens": 4, "n": 3},
        {**CHAT, "max_tokens": 9},
        {**CHAT, "max_tokens": 4, **USAGE},
        {**CHAT, "max_tokens": 4, "stream": True, "n": 2},
        {**CHAT, "max_tokens": 4, "model": "other"},
        {**TEXT, "max_tokens": 4, "model": "other", "stream": True},
    ],
    ids=lambda asked: "-".join(asked),
)
def test_the_bytes_are_those_of_the_bare_server(ports, asked):
    path = PATHS["messages" in asked]
    bare, monitored = (exchange(port, path, {"model": "m", **asked}) for port in ports)
    assert monitored == bare
    assert bare.startswith(b"HTTP/1.1 ")


def test_the_client_of_openai_sees_no_difference_and_violations_are_counted(ports):
    def told(port):
        """All that the client gets, of requests of every kind."""
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
        )
        with client:
            for tokens in (2, 4, 7):
                yield client.completions.create(model="m", max_tokens=tokens, **TEXT)
            yield client.chat.completions.create(model="m", max_tokens=9, **CHAT)
            yield client.chat.completions.create(model="m", max_tokens=9, n=2, **CHAT)
            yield from client.chat.completions.create(model="m", max_tokens=7, **CHAT, **USAGE)
            yield from client.chat.completions.create(model="m", max_tokens=7, stream=True, **CHAT)
            with pytest.raises(openai.NotFoundError) as caught:
                client.chat.completions.create(model="other", max_tokens=7, **CHAT)
            yield str(caught.value)

    bare, monitored = ports
    before = counts(monitored)
    assert list(told(monitored)) == list(told(bare))
    expected = {
        "rljax_responses_total": 5,
        'rljax_length_violations_total{verdict="short"}': 1,
        'rljax_length_violations_total{verdict="long"}': 3,
        'rljax_length_violations_total{verdict="truncated"}': 1,
        'rljax_unmeasured_responses_total{reason="uncounted"}': 3,
    }
    check_counts(monitored, expected, before)


def test_a_client_that_goes_away_is_no_response(tmp_path):
    (tmp_path / "config.yaml").write_text("length: {min_tokens: 3, max_tokens: 6}")
    with serving(with_starlette(config=tmp_path / "config.yaml")) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        asked = {"model": "m", "max_tokens": 4, "stream": True, "user": "endless"}
        with client, client.chat.completions.create(**asked, **CHAT) as stream:
            assert next(iter(stream)).model == "m"
        check_counts(port, {'rljax_unmeasured_responses_total{reason="unfinished"}': 1})


def test_it_is_loaded_by_its_name_and_configured_by_the_environment(tmp_path, monkeypatch):
    """As by ``vllm serve --middleware``: a class is added to the application, with no keywords."""
    (tmp_path / "config.yaml").write_text("length: {min_tokens: 3, max_tokens: 6}")
    monkeypatch.setenv("RLJAX_MONITOR_CONFIG", str(tmp_path))
    module, _, name = "rljax.monitor.LengthMonitor".rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert inspect.isclass(found)
    app = with_fastapi()
    app.add_middleware(found)
    with serving(app) as port:
        exchange(port, PATHS[0], {"model": "m", "max_tokens": 4, **TEXT})
        check_counts(port, {"rljax_responses_total": 1})


def test_a_wrong_config_refuses_the_start_of_a_server(tmp_path):
    """Uvicorn takes an exception within a lifespan for an application that has none."""
    server = uvicorn.Server(
        uvicorn.Config(with_fastapi(config=tmp_path), log_level="critical", port=0)
    )
    with contextlib.suppress(SystemExit):  # by its version, uvicorn ends here or in its command
        server.run()
    assert not server.started
    assert server.lifespan.should_exit
