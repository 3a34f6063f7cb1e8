"""The server's routes, as an ASGI application: between clients and the engine's thread."""

import asyncio
import contextlib
import copy
import functools
import hmac
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rljax.endpoint.engine import Engine, EngineError, OverloadedError
from rljax.endpoint.protocol import ApiError, Asked, Serving, read_request
from rljax.endpoint.replies import Reply, event
from rljax.endpoint.responses import Delta
from rljax.host.secrets import redact, say

MOST_BYTES = 8 * 2**20  # of a request's body


def make_app(
    engine: Engine,
    serving: Serving,
    *,
    api_key: str | None = None,
    middleware: Sequence[type] = (),
) -> Starlette:
    """The application. ``middleware``: ASGI classes around it, the last one outermost, as
    ``vllm serve --middleware`` has them; ``api_key``: what clients must send, if anything."""
    created = int(time.time())
    # A long prompt is not tokenized at once, and streams go on meanwhile: by a tokenizer of their
    # own, as one that is used from several threads at once may refuse to be.
    reading, tokenizer = ThreadPoolExecutor(1), copy.deepcopy(serving.tokenizer)
    card = {"id": serving.model, "object": "model", "created": created, "owned_by": "rljax"}
    card["max_model_len"] = serving.max_prompt_tokens + serving.max_tokens

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if api_key is not None and not hmac.compare_digest(given, f"Bearer {api_key}".encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    async def health(request: Request) -> Response:
        return Response(status_code=200 if engine.alive else 503)

    async def models(request: Request) -> Response:
        check_key(request)
        return JSONResponse({"object": "list", "data": [card]})

    async def model(request: Request) -> Response:
        check_key(request)
        name = request.path_params["model"]
        if name != serving.model:
            message = f'model: there is no "{name}" here; the model is "{serving.model}"'
            raise ApiError(404, message, param="model", code="model_not_found")
        return JSONResponse(card)

    async def completions(request: Request) -> Response:
        return await answer(request, chat=False)

    async def chat(request: Request) -> Response:
        return await answer(request, chat=True)

    async def answer(request: Request, *, chat: bool) -> Response:
        check_key(request)
        read = functools.partial(read_request, await _body(request), serving, chat=chat)
        asked = await asyncio.get_running_loop().run_in_executor(reading, read)
        news = _news(engine, asked, request.receive)
        reply = Reply(asked, serving.model, tokenizer)
        if asked.stream:
            first = await anext(news, [])  # so that what fails at once is no stream
            return _Stream(reply, first, news)
        async with contextlib.aclosing(news):
            deltas = [delta async for some in news for delta in some]
        if not deltas or not _finished(deltas, asked):  # nobody is there to read it
            return Response(status_code=499)
        return JSONResponse(reply.whole(deltas))

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{model:path}", model),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ],
        middleware=[Middleware(cls) for cls in reversed(middleware)],
        exception_handlers={ApiError: _api_error, HTTPException: _no_route, Exception: _fault},
    )


class _Stream(Response):
    """Server-sent events, from a job's news as it comes."""

    def __init__(self, reply: Reply, first: list[Delta], news: AsyncIterator[list[Delta]]):
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._reply, self._first, self._news = reply, first, news

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        head = {"type": "http.response.start", "status": self.status_code}
        await send({**head, "headers": self.raw_headers})
        async with contextlib.aclosing(self._news):
            await write(b"".join(self._reply.events(self._first)))
            try:
                async for some in self._news:
                    await write(b"".join(self._reply.events(some)))
            except ApiError as error:
                await write(event(error.body()) + b"data: [DONE]\n\n")
            await write(b"", more=False)


async def _news(engine: Engine, asked: Asked, receive: Receive) -> AsyncIterator[list[Delta]]:
    """What comes for a request until all its responses have ended, or the client is gone; then
    nobody draws any more. Raises ``ApiError``."""
    loop, incoming = asyncio.get_running_loop(), asyncio.Queue()

    def deliver(news: list[Delta] | Exception) -> None:
        loop.call_soon_threadsafe(incoming.put_nowait, news)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        incoming.put_nowait(None)

    try:
        job = engine.submit(asked.prompts, asked.n, asked.sampling, deliver)
    except OverloadedError as error:
        message = f"the server is overloaded: {error}; try again later"
        raise ApiError(503, message, code="overloaded") from error
    watching = asyncio.create_task(watch())
    unfinished = len(asked.prompts) * asked.n
    try:
        while unfinished:
            news = await incoming.get()
            if news is None:
                return
            if isinstance(news, EngineError):
                raise ApiError(500, str(news), code="engine_failed")
            unfinished -= sum(delta.finish is not None for delta in news)
            yield news
    finally:
        job.cancelled = True
        watching.cancel()


def _finished(deltas: list[Delta], asked: Asked) -> bool:
    ended = sum(delta.finish is not None for delta in deltas)
    return ended == len(asked.prompts) * asked.n


async def _body(request: Request) -> bytes:
    """The body of a request. JSON has to say so: a page in a browser then cannot send it to a
    server on the reader's own machine without being allowed to."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f'content-type: application/json is needed, got "{kind}"')
    text = b""
    async for part in request.stream():
        text += part
        if len(text) > MOST_BYTES:
            raise ApiError(413, f"the body is larger than {MOST_BYTES} bytes")
    return text


async def _api_error(request: Request, error: Any) -> Response:
    headers = {"retry-after": "1"} if error.status == 503 else None
    return JSONResponse(error.body(), error.status, headers)


async def _no_route(request: Request, error: Any) -> Response:
    said = f"{request.method} {request.url.path}: {error.detail.lower()}"
    return JSONResponse(ApiError(error.status_code, said).body(), error.status_code, error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    say(f"error: {type(error).__name__}: {redact(' '.join(str(error).split()))}")
    said = "the server failed; see what it printed"
    return JSONResponse(ApiError(500, said).body(), 500)
