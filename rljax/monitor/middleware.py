"""An ASGI middleware that judges the lengths of a server's responses, and leaves them as they are.

The server's thread only notes what passes through; one thread of the monitor's own reads it.
"""

import asyncio
import concurrent.futures
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from rljax.errors import UserError
from rljax.host.secrets import redact
from rljax.length_policy import LengthPolicy, read_policy
from rljax.monitor.judging import Judge
from rljax.monitor.responses import Reader
from rljax.monitor.tokenizer import FILE, CountTokens, load_counter

PATHS = ("/v1/completions", "/v1/chat/completions")
METRICS = "/rljax/metrics"
OFF = ("", "off", "none")
CONFIG, TOKENIZER, LOG, TEXT, SCRAPED = (
    f"RLJAX_MONITOR_{name}" for name in ("CONFIG", "TOKENIZER", "LOG", "TEXT", "METRICS")
)
BATCH_PARTS = 1024  # of a response, that are read at once
MOST_WAITING = 512  # batches and responses; one more is let go unread

logger = logging.getLogger("rljax.monitor")
Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]


class LengthMonitor:
    """Wraps an ASGI application, or a Starlette or FastAPI one by ``add_middleware``.

    What is not given is taken from the environment. What is wrong with it refuses the server's
    start, where the server asks (ASGI's lifespan), and is logged; requests are served all the same.
    Whatever goes wrong later is logged once and counted.
    """

    def __init__(
        self,
        app: Callable,
        *,
        config: str | os.PathLike | None = None,
        tokenizer: str | os.PathLike | CountTokens | None = None,
        log: str | os.PathLike | None = None,
        text: bool | None = None,
        metrics: str | None = None,
        window: int = 1000,
    ):
        """
        Args:
          config: a YAML config or the folder of a run; ``RLJAX_MONITOR_CONFIG``.
          tokenizer: a folder with a ``tokenizer.json``, or that file, or a function from texts to
            their numbers of tokens; ``RLJAX_MONITOR_TOKENIZER``, by default that of the policy that
            a run has exported.
          log: a file that violations are appended to, as JSON lines; ``RLJAX_MONITOR_LOG``.
          text: whether these hold the responses' texts; ``RLJAX_MONITOR_TEXT=1``.
          metrics: the path that answers with Prometheus' metrics, or "off";
            ``RLJAX_MONITOR_METRICS``, by default /rljax/metrics.
          window: how many of a model's last responses the gauges are of.
        """
        given = os.environ.get
        self._app = app
        self._judge: Judge | None = None
        self._fault: str | None = None
        path = given(SCRAPED, METRICS) if metrics is None else metrics
        self._scraped = None if path.lower() in OFF else path
        # One thread, so that responses are counted in their order; it starts with the first.
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rljax-monitor")
        self._room = threading.BoundedSemaphore(MOST_WAITING)
        try:
            if window < 1:
                raise UserError(f"window: at least one response is needed, got {window}")
            if self._scraped is not None and not self._scraped.startswith("/"):
                raise UserError(f'metrics: {METRICS} or such, or off, is needed, got "{path}"')
            config = config or given(CONFIG)
            policy = _policy(config)
            self._judge = Judge(
                policy,
                load_counter(tokenizer or given(TOKENIZER) or _tokenizer_of(Path(config))),
                log=log or given(LOG) or None,
                text=given(TEXT, "").lower() in ("1", "true", "yes") if text is None else text,
                window=window,
            )
        except UserError as error:
            self._give_up(str(error))
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {error}")
        else:
            self._introduce(policy)

    def _give_up(self, why: str) -> None:
        self._fault = redact(f"rljax: error: the length monitor cannot judge: {why}")
        logger.error(self._fault)

    def _introduce(self, policy: LengthPolicy) -> None:
        logger.info(
            "rljax: responses are judged by %d to %d tokens; costs: %s",
            policy.min_tokens,
            policy.max_tokens,
            ", ".join(policy.costs) or "none",
        )
        for stage, why in policy.left_out.items():
            logger.warning("rljax: shaping.%s is not applied in serving: %s", stage, why)

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan" and self._fault is not None:
            # An exception would be taken for an application without a lifespan.
            await receive()
            await send({"type": "lifespan.startup.failed", "message": self._fault})
            return
        if kind != "http" or self._judge is None:
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        if method == "POST" and path.rstrip("/").endswith(PATHS):
            watch = Watch(self._judge, self._submit, path, send)
            try:
                await self._app(scope, receive, watch.send)
            finally:
                watch.end()
        elif method == "GET" and self._scraped == path.removeprefix(scope.get("root_path") or ""):
            await self._tell(send)
        else:
            await self._app(scope, receive, send)

    async def _tell(self, send: Send) -> None:
        """Answers with the metrics, made by the monitor's own thread."""
        text = await asyncio.get_running_loop().run_in_executor(
            self._worker, self._judge.tally.text
        )
        headers = [
            (b"content-type", CONTENT_TYPE_LATEST.encode()),
            (b"content-length", str(len(text)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    def settle(self) -> None:
        """Waits until all that has passed through so far is judged."""
        self._worker.submit(lambda: None).result()

    def _submit(self, task: Callable, *args: Any) -> bool:
        """Has the monitor's own thread do something. False if it has too much to do already."""
        if not self._room.acquire(blocking=False):
            return False
        self._worker.submit(self._run, task, args)
        return True

    def _run(self, task: Callable, args: tuple) -> None:
        began = time.thread_time()
        try:
            task(*args)
        except Exception as error:
            self._judge.failed(error)
        finally:
            self._room.release()
            self._judge.tally.seconds += time.thread_time() - began


class Watch:
    """What passes through of one response."""

    def __init__(self, judge: Judge, submit: Callable[..., bool], path: str, send: Send):
        self._judge, self._submit, self._path, self._send = judge, submit, path, send
        self._reader: Reader | None = None  # None: there is nothing to be judged
        self._batch: list[bytes] = []
        self._whole = self._lost = False

    def send(self, message: Message) -> Awaitable[None]:
        """The application's ``send``. No coroutine of its own, which every token would pay for."""
        try:
            if self._reader is None or message["type"] != "http.response.body":
                self._begin(message)
            else:
                self._batch.append(message.get("body", b""))
                if not message.get("more_body"):
                    self._whole = True
                elif len(self._batch) >= BATCH_PARTS:
                    self._hand_over()
        except Exception as error:
            self._fail(error)
        return self._send(message)

    def end(self) -> None:
        """The application is done with the response, or was stopped."""
        if self._reader is None:
            return
        try:
            self._hand_over()
            if self._lost or not self._submit(
                self._judge.conclude, self._reader, self._path, self._whole
            ):
                self._judge.tally.unmeasured["busy"] += 1  # which no other thread writes
        except Exception as error:
            self._fail(error)

    def _begin(self, message: Message) -> None:
        """What the head of a response tells, if it is one."""
        if message["type"] != "http.response.start" or not 200 <= message["status"] < 300:
            return
        headers = {bytes(name).lower(): value for name, value in message.get("headers", ())}
        self._reader = Reader(
            headers.get(b"content-type", b"").lower().startswith(b"text/event-stream"),
            keeps_text=self._judge.keeps_text,
            encoded=headers.get(b"content-encoding", b"identity") != b"identity",
        )

    def _hand_over(self) -> None:
        batch, self._batch = self._batch, []
        if batch and not self._lost:
            self._lost = not self._submit(self._reader.feed, batch)

    def _fail(self, error: Exception) -> None:
        self._reader = None
        self._judge.failed(error)


def _policy(config: str | os.PathLike | None) -> LengthPolicy:
    if not config:
        raise UserError(
            f"no config: name a YAML config or the folder of a run by {CONFIG}, or by config="
        )
    return read_policy(Path(config))


def _tokenizer_of(run: Path) -> Path | None:
    """That of a run's policy, if it is there and can be read."""
    folder = run / "policy"
    readable = importlib.util.find_spec("tokenizers") is not None
    return folder if readable and (folder / FILE).is_file() else None
