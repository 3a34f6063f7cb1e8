"""The thread that has the devices: requests come in by a queue, and their tokens go out by calls.

Responses share one table of rows. A request joins it between two calls of ``decode``, as soon as a
row is free and its columns fit, and leaves it when it has ended.
"""

import collections
import contextlib
import copy
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rljax.endpoint.responses import Deliver, Delta, Job, Response, Sampling, Token, finite
from rljax.endpoint.table import MOST_STEPS, Drawn, RowSettings, make_programs
from rljax.endpoint.warm_up import fitting, sizes, warm_up
from rljax.errors import UserError
from rljax.host.secrets import say
from rljax.types import Model, Params

DELIVER_SECONDS = 0.1  # how often streams get something, at least, if a token takes no longer
STOP_SECONDS = 60.0  # that a call of a program may take to return


class Policy(NamedTuple):
    """What is served."""

    model: Model
    params: Params
    tokenizer: Any
    eos_ids: tuple[int, ...]
    vocabulary: int  # tokens that the logits are of
    mesh: Mesh
    max_prompt_tokens: int
    max_tokens: int  # of a response


class OverloadedError(Exception):
    """More requests wait than may."""


class EngineError(Exception):
    """The devices failed; the request is lost, the server goes on."""


class Engine:
    """Draws responses; ``submit`` may be called from any thread."""

    def __init__(
        self,
        policy: Policy,
        *,
        rows: int = 16,
        most_waiting: int = 256,
        least_prompt: int = 64,
        least_columns: int = 256,
        told: Callable[[str], None] = lambda text: None,
    ):
        """
        Args:
          rows: responses at once.
          most_waiting: responses, for one of these.
          least_prompt: tokens of the prompts that the smallest program is for.
          least_columns: of the table that the smallest program is for.
          told: is called with a line on what takes long.
        """
        self._params, self._mesh = policy.params, policy.mesh
        self.rows, self._told = rows, told
        self._most = rows + most_waiting
        # Its own: a tokenizer that is used from several threads at once may refuse to be.
        self._tokenizer = copy.deepcopy(policy.tokenizer)
        self._eos = frozenset(policy.eos_ids)
        self._programs = make_programs(
            policy.model,
            policy.mesh,
            vocabulary=policy.vocabulary,
            rows=rows,
            eos_ids=policy.eos_ids,
        )
        self._widths = sizes(least_prompt, policy.max_prompt_tokens)
        self._columns = sizes(least_columns, policy.max_prompt_tokens + policy.max_tokens)
        self._inbox: queue.SimpleQueue[list[Response] | None] = queue.SimpleQueue()
        self._open, self._lock = 0, threading.Lock()  # responses that are not done
        self._stopping = False
        self._ready, self._fault = threading.Event(), None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ---- from other threads

    def start(self) -> None:
        """Returns when all is compiled. Raises what kept it from that, ``UserError`` if it was the
        devices."""
        self._thread.start()
        self._ready.wait()
        if isinstance(self._fault, jax.errors.JaxRuntimeError):
            said = " ".join(str(self._fault).split())
            raise UserError(f"the devices refuse; fewer rows or tokens may fit: {said}")
        if self._fault is not None:
            raise self._fault

    def stop(self) -> None:
        """Ends the thread; what is under way gets an ``EngineError``."""
        self._stopping = True
        self._inbox.put(None)
        self._thread.join(STOP_SECONDS)

    @property
    def alive(self) -> bool:
        return self._ready.is_set() and self._thread.is_alive()

    def submit(
        self, prompts: Sequence[list[int]], n: int, sampling: Sampling, deliver: Deliver
    ) -> Job:
        """Has ``n`` responses drawn to each prompt; response i of prompt p has index p·n + i.

        ``deliver`` is called by the engine's thread, with what is new of the job's responses, or
        with the exception that ended them. Raises ``OverloadedError``.
        """
        job = Job(deliver)
        count = len(prompts) * n
        with self._lock:
            if self._open + count > self._most:
                raise OverloadedError(f"{self._open} responses are under way or wait")
            self._open += count
        responses = [
            Response.begin(job, index, prompt, sampling, self._tokenizer)
            for index, prompt in enumerate(p for p in prompts for _ in range(n))
        ]
        self._inbox.put(responses)
        return job

    # ---- the engine's own thread

    def _run(self) -> None:
        try:
            with jax.set_mesh(self._mesh):
                self._params = self._programs.settle(self._params)
                self._clear()
                warm_up(
                    self._programs,
                    self._params,
                    self.rows,
                    self._widths,
                    self._columns,
                    self._compiling,
                )
                self._ready.set()
                self._serve()
        except Exception as error:
            self._fault = error
        finally:
            self._ready.set()

    def _serve(self) -> None:
        while self._receive():
            try:
                self._admit()
                self._decode()
            except Exception as error:  # such as no memory: the next request may fit
                say(f"error: {type(error).__name__}: {' '.join(str(error).split())}")
                self._fail(EngineError("the engine failed; see what the server printed"))
        self._fail(EngineError("the server is stopping"))

    def _clear(self) -> None:
        self._waiting: collections.deque[Response] = collections.deque()
        self._at: list[Response | None] = [None] * self.rows  # what each row draws
        self._settings = RowSettings.free(self.rows)
        self._table, self._column, self._steps = None, 0, MOST_STEPS

    def _compiling(self, what: str) -> None:
        if self._stopping:
            raise EngineError("the server is stopping")
        self._told(f"compiling: {what} …")

    def _receive(self) -> bool:
        """Takes what has come, and waits for it if there is nothing else to do."""
        idle = not self._waiting and not any(self._at)
        while not self._stopping:
            try:
                responses = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if responses is None:
                break
            self._waiting += responses
            idle = False
        return False

    def _admit(self) -> None:
        """Gives free rows to those that wait longest; the responses to one prompt share its
        prefill."""
        for row, response in enumerate(self._at):
            if response is not None and response.job.cancelled:
                self._free(row)
        kept = [r for r in self._waiting if not r.job.cancelled]
        self._done(len(self._waiting) - len(kept))
        self._waiting = collections.deque(kept)
        while self._waiting and None in self._at:
            first = self._waiting[0]
            if not self._make_room(first):
                return
            rows = []
            for row in (row for row, other in enumerate(self._at) if other is None):
                if not self._waiting or not _alike(self._waiting[0], first):
                    break
                self._occupy(row, self._waiting.popleft())
                rows.append(row)
            self._place(first.prompt, rows)

    def _make_room(self, new: Response) -> bool:
        """Sees to it that a prompt fits before the column, and its response behind it."""
        width = fitting(self._widths, len(new.prompt))
        left = max(new.sampling.max_tokens, int(self._settings.left.max()))
        used = [len(r.prompt) + r.drawn for r in self._at if r is not None]
        least = max(width, *used, 0)  # the leftmost column that all begin before
        if least + left > self._columns[-1]:
            return False
        needed = fitting(self._columns, least + left)
        held = 0 if self._table is None else self._table.visible.shape[1]
        if not used:
            self._column = width
            if held != needed:
                self._table = None  # before the new one, so that there is memory for it
                self._table = self._programs.empty(needed)
            return True
        if needed > held:
            self._table, held = self._programs.widen(self._table, needed), needed
        if self._column < least or self._column + left > held:
            self._table = self._programs.shift(self._table, np.int32(least - self._column))
            self._column = least
        return True

    def _occupy(self, row: int, response: Response) -> None:
        self._at[row], sampling = response, response.sampling
        greedy = sampling.temperature == 0
        values = RowSettings(
            seed=sampling.seed,
            index=response.index,
            drawn=0,
            left=sampling.max_tokens,
            temperature=1.0 if greedy else sampling.temperature,
            greedy=greedy,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            alternatives=bool(sampling.alternatives),
        )
        for array, value in zip(self._settings, values, strict=True):
            array[row] = value

    def _place(self, prompt: list[int], rows: list[int]) -> None:
        width = fitting(self._widths, len(prompt))
        tokens, mask = np.zeros((1, width), np.int32), np.zeros((1, width), bool)
        tokens[0, width - len(prompt) :], mask[0, width - len(prompt) :] = prompt, True
        chosen = np.zeros(self.rows, bool)
        chosen[rows] = True
        logits, cache = self._programs.prefill(self._params, tokens, mask)
        self._table = self._programs.place(
            self._table, logits, cache, mask, chosen, np.int32(self._column)
        )

    def _decode(self) -> None:
        """Draws some tokens of every row, and hands them out."""
        if not any(self._at):
            return
        began = time.perf_counter()
        column, most = np.int32(self._column), np.int32(self._steps)
        self._table, drawn = self._programs.decode(
            self._params, self._table, self._settings, column, most
        )
        drawn = jax.device_get(drawn)
        steps = int(drawn.steps)
        self._column += steps
        seconds = (time.perf_counter() - began) / steps
        self._steps = min(max(int(DELIVER_SECONDS / seconds), 1), MOST_STEPS)
        news: dict[int, tuple[Job, list[Delta]]] = {}
        ended = []
        for row, response in enumerate(self._at):
            if response is not None:
                delta = self._take(row, response, drawn, steps)
                news.setdefault(id(response.job), (response.job, []))[1].append(delta)
                ended += [row] if delta.finish else []
        for row in ended:  # only now: a fault in a later row is told to whoever has a row
            self._free(row)
        for job, deltas in news.values():
            self._deliver(job, deltas)

    def _take(self, row: int, response: Response, drawn: Drawn, steps: int) -> Delta:
        ids = drawn.tokens[: min(steps, int(self._settings.left[row])), row].tolist()
        end = next((n for n, token in enumerate(ids) if token in self._eos), None)
        ids = ids if end is None else ids[: end + 1]
        logprobs = drawn.logprobs[: len(ids), row]
        if np.isnan(logprobs).any():
            raise EngineError("the model computes numbers that are none (NaN)")

        def token(at: int, offset: int) -> Token:
            count = response.sampling.alternatives
            pairs = zip(drawn.top_ids[at, row], drawn.top_logprobs[at, row], strict=True)
            top = tuple((int(i), finite(p)) for i, p in list(pairs)[:count])
            return Token(ids[at], finite(logprobs[at]), top, offset)

        last = len(ids) == self._settings.left[row]
        delta = response.take(ids, end is not None, last, token)
        self._settings.drawn[row] += len(ids)
        self._settings.left[row] -= len(ids)
        return delta

    def _free(self, row: int) -> None:
        self._at[row] = None
        for array, value in zip(self._settings, RowSettings.free(1), strict=True):
            array[row] = value[0]
        self._done(1)

    def _done(self, count: int) -> None:
        with self._lock:
            self._open -= count

    def _deliver(self, job: Job, news: list[Delta] | Exception) -> None:
        try:
            job.deliver(news)
        except Exception:  # whoever asked is gone
            job.cancelled = True

    def _fail(self, error: Exception) -> None:
        """Ends all that is under way or waits, and begins anew."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._waiting += self._inbox.get(block=False) or []
        lost = [*filter(None, self._at), *self._waiting]
        self._clear()
        self._done(len(lost))
        for job in {id(response.job): response.job for response in lost}.values():
            self._deliver(job, error)


def _alike(one: Response, other: Response) -> bool:
    """Whether one prefill serves both."""
    return one.job is other.job and one.prompt is other.prompt
