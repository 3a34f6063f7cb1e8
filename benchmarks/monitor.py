"""``python -m benchmarks.monitor``: what the length monitor adds to a server's responses.

The same application answers with and without it, in turn, in one process and by ASGI alone: no
network and no model hides the difference. Prints milliseconds per whole response, and the processor
time that the monitor adds in the thread that answers and in its own.
"""

import argparse
import asyncio
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rljax.monitor import LengthMonitor

CONFIG = "length: {min_tokens: 30, max_tokens: 80}\nshaping: {length: length_band}\n"
ID = "chatcmpl-0123456789abcdef0123456789abcdef"
HEAD = {"id": ID, "created": 1700000000, "model": "Qwen/Qwen2.5-7B-Instruct"}
TOKEN = " token"
COLUMNS = (
    *("median, bare", "monitored", "added", "p99, bare", "monitored"),
    *("server's thread", "monitor's thread"),
)
BLOCK = 20  # responses without a pause


def whole(tokens: int, n: int) -> list[bytes]:
    """The body of a chat completion of ``n`` choices, in one part."""
    message = {"role": "assistant", "content": TOKEN * tokens}
    choices = [{"index": i, "message": message, "finish_reason": "stop"} for i in range(n)]
    usage = {"prompt_tokens": 9, "completion_tokens": n * tokens, "total_tokens": n * tokens + 9}
    return [json.dumps({**HEAD, "choices": choices, "usage": usage}).encode()]


def stream(tokens: int, n: int) -> list[bytes]:
    """The parts of a streamed one: a part for each token of each choice, the usage last."""

    def event(choices, **more):
        told = {**HEAD, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(told, separators=(',', ':'))}\n\n".encode()

    def choice(index, reason=None):
        delta = {"content": TOKEN}
        return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}]

    parts = [event(choice(i)) for _ in range(tokens - 1) for i in range(n)]
    parts += [event(choice(i, "stop")) for i in range(n)]
    return [*parts, event([], usage={"completion_tokens": n * tokens}), b"data: [DONE]\n\n"]


CASES = {  # by their name: the parts of a body, and whether it is a stream
    "40 tokens": (whole(40, 1), False),
    "40 tokens, n = 8": (whole(40, 8), False),
    "4,096 tokens": (whole(4096, 1), False),
    "4,096 tokens, n = 8": (whole(4096, 8), False),
    "40 tokens, streamed": (stream(40, 1), True),
    "4,096 tokens, streamed": (stream(4096, 1), True),
    "512 tokens, n = 8, streamed": (stream(512, 8), True),
}


def application(parts: list[bytes], streamed: bool):
    """Answers every request with the same parts."""
    kind = b"text/event-stream; charset=utf-8" if streamed else b"application/json"

    async def app(scope, receive, send):
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


async def seconds(app) -> float:
    """How long one response takes."""
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "root_path": ""}

    async def send(message):
        pass

    began = time.perf_counter()
    await app(scope, None, send)
    return time.perf_counter() - began


def processor_seconds() -> np.ndarray:
    """Of this thread, and of all others of the process."""
    own = time.thread_time()
    return np.array([own, time.process_time() - own])


class Times(NamedTuple):
    """Of an application's responses, in milliseconds."""

    median: float
    p99: float
    server: float  # processor time of the thread that answers, per response
    others: float  # and of all others


async def compare(bare, monitored, responses: int) -> tuple[Times, Times]:
    """Both in turn, in blocks of responses without a pause, so that what the monitor's own thread
    does meanwhile delays the monitored ones. A block ends when that thread is done."""
    taken = {app: [] for app in (bare, monitored)}
    busy = {app: np.zeros(2) for app in taken}
    for block in range(responses // BLOCK + 1):
        for app in (bare, monitored) if block % 2 else (monitored, bare):
            began = processor_seconds()
            times = [await seconds(app) for _ in range(BLOCK)]
            monitored.settle()
            if block:  # the first one warms up
                busy[app] += processor_seconds() - began
                taken[app] += times

    def of(app):
        cuts = statistics.quantiles(taken[app], n=100, method="inclusive")
        return Times(cuts[49] * 1e3, cuts[98] * 1e3, *(busy[app] / len(taken[app]) * 1e3))

    return of(bare), of(monitored)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitor", description=__doc__)
    parser.add_argument("--responses", type=int, default=1000, help="of each kind")
    options = parser.parse_args()
    logging.getLogger("rljax.monitor").setLevel(logging.CRITICAL)
    print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    print(f"{options.responses} responses of each kind, milliseconds\n")
    print(f"| response | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG)
        for name, (parts, streamed) in CASES.items():
            app = application(parts, streamed)
            bare, on = asyncio.run(
                compare(app, LengthMonitor(app, config=config), options.responses)
            )
            figures = (bare.median, on.median, on.median - bare.median, bare.p99, on.p99)
            figures += (on.server - bare.server, on.others - bare.others)
            print(f"| {name} | {' | '.join(f'{value:.3f}' for value in figures)} |", flush=True)


if __name__ == "__main__":
    main()
