"""A server whose completions have lengths that are made up, behind the middleware, and its callers.

It tells of as many tokens as a request asks for, and has no text.
"""

import asyncio
import contextlib
import json
import logging
import random
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from rljax import monitor

MODELS = {"brief": (22, 38), "rambling": (35, 72)}  # tokens from and to, on two servers in one
BUDGET_TOKENS = 60
CALLS_PER_SECOND = 10  # for each model


async def complete(scope: dict, receive, send) -> None:
    """Answers a request of OpenAI's completions, as an ASGI application."""
    if scope["type"] != "http":
        return
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    asked = json.loads(body)
    tokens = min(int(asked["prompt"]), BUDGET_TOKENS)
    reason = "length" if tokens == BUDGET_TOKENS else "stop"
    answer = {
        "id": "cmpl-0",
        "object": "text_completion",
        "created": 0,
        "model": asked["model"],
        "choices": [{"index": 0, "text": "", "finish_reason": reason, "logprobs": None}],
        "usage": {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1},
    }
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


@contextlib.contextmanager
def serving(config: Path, port: int) -> Iterator[None]:
    """A server on loopback that is judged by the length policy of a config, and is called all the
    time."""
    server = uvicorn.Server(
        uvicorn.Config(
            monitor.LengthMonitor(complete, config=config),
            host="127.0.0.1",
            port=port,
            lifespan="off",
            log_level="warning",
        )
    )
    logging.getLogger("rljax.monitor").setLevel(logging.ERROR)  # each violation is a warning
    ended = threading.Event()
    threads = [
        threading.Thread(target=asyncio.run, args=(server.serve(),)),
        threading.Thread(target=call, args=(port, ended)),
    ]
    threads[0].start()
    while not server.started:
        time.sleep(0.05)
    threads[1].start()
    try:
        yield
    finally:
        ended.set()
        threads[1].join()
        server.should_exit = True
        threads[0].join()


def call(port: int, ended: threading.Event) -> None:
    """Asks each model for responses of lengths at random, until it has ``ended``."""
    chance = random.Random(0)
    while not ended.wait(1 / CALLS_PER_SECOND):
        for model, (low, high) in MODELS.items():
            asked = {"model": model, "prompt": str(chance.randint(low, high))}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/completions",
                json.dumps(asked).encode(),
                {"content-type": "application/json"},
            )
            urllib.request.urlopen(request, timeout=30).close()
