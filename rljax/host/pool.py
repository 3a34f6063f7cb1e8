"""A pool of processes with limits, for rewards in Python.

Every process has a pipe of its own, so that one that dies in the middle of a word takes nobody else
with it. What it answers is JSON: nothing that it says is unpickled here. It imports no JAX: every
process imports this module.
"""

import atexit
import collections
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Sequence
from multiprocessing import connection, context
from typing import Any, NamedTuple

from rljax.host.worker import serve
from rljax.signatures import Call, Failure, Outcome, Response

MAX_WORKERS = 8
STARTS = 3  # of every process that may fail, one after another
START_SECONDS = 300.0  # that a process may take to start, what it imports included
LOOK_SECONDS = 0.1  # between two looks at whether one has died, or is late
END_SECONDS = 1.0  # that one may take to end once its pipe is closed


class Job(NamedTuple):
    """One call: what it is asked about, and what it may take."""

    call: Call
    responses: Sequence[Response]
    timeout_seconds: float
    memory_gib: float | None = None  # beside what its process holds; None: all there is


Found = list[Outcome] | Failure  # of a job: one for each response, or why there are none


class RewardPool:
    """Processes that are started when they are first needed, and then kept.

    One that hangs is killed, with all that it has started, and one that dies is missed: another
    takes its place. They see no accelerator of JAX's. ``close`` ends them, as does leaving the
    pool's context.

    Args:
      workers: how many; by default one for each core, 8 at most.
    """

    def __init__(self, workers: int | None = None):
        self._count = workers or min(os.cpu_count() or 1, MAX_WORKERS)
        self._prepared: list[Call] = []
        self._workers: list[_Worker] = []
        self._failed_starts = 0  # since one has succeeded

    def prepare(self, call: Call) -> None:
        """Processes started from now on import what the call needs at once; others on their first
        such job, within its time limit."""
        if call not in self._prepared:
            self._prepared.append(call)

    def run(self, jobs: Sequence[Job]) -> list[list[Outcome]]:
        """The outcomes of every job, which run beside each other."""
        found: dict[int, Found] = {}
        waiting = collections.deque(range(len(jobs)))
        self._failed_starts = 0
        try:
            while len(found) < len(jobs):
                if not self._fill():
                    found |= dict.fromkeys(waiting, Failure("processes for rewards do not start"))
                    break
                self._assign(jobs, waiting, found)
                self._listen(found)
        except BaseException:
            self.close()  # some are in the middle of a job
            raise
        if any(worker.outgrown for worker in self._workers):
            self.close()  # what calls leave behind would pile up
        return [
            [found[at]] * len(job.responses) if isinstance(found[at], Failure) else found[at]
            for at, job in enumerate(jobs)
        ]

    def close(self) -> None:
        """Ends the processes, whatever they do. A later ``run`` starts others."""
        for worker in self._workers:
            worker.end()
        self._workers = []
        atexit.unregister(self.close)

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _fill(self) -> bool:
        """Starts what processes are missing, and says whether there are any."""
        if not self._workers:
            atexit.register(self.close)
        while len(self._workers) < self._count and self._failed_starts < STARTS * self._count:
            try:
                self._workers.append(_Worker(list(sys.path), self._prepared))
            except OSError:
                self._failed_starts += 1
        return bool(self._workers)

    def _assign(
        self,
        jobs: Sequence[Job],
        waiting: collections.deque[int],
        found: dict[int, Found],
    ) -> None:
        """Gives a job to everyone who has none."""
        for worker in self._workers:
            if not waiting or not worker.is_free():
                continue
            at = waiting.popleft()
            try:
                worker.ask(at, jobs[at])
            except OSError:  # it is dead, and will be missed
                waiting.appendleft(at)
            except Exception as error:  # from within what was to be sent
                what = " ".join(f"{type(error).__name__}: {error}".split())
                found[at] = Failure(f"its row cannot be sent to another process ({what[:200]})")

    def _listen(self, found: dict[int, Found]) -> None:
        """Hears those that have something to say, and misses those that are dead or late."""
        said = connection.wait([worker.pipe for worker in self._workers], LOOK_SECONDS)
        for worker in list(self._workers):
            at, started = worker.at, worker.ready
            news = worker.news(worker.pipe in said)
            if news is None:
                continue
            if worker.ended:
                self._workers.remove(worker)
                self._failed_starts += not started
            else:
                self._failed_starts = 0
            if at is not None:
                found[at] = news


class _Worker:
    """A process, and the pipe to it."""

    def __init__(self, path: list[str], calls: list[Call]):
        self.pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self.process = _Process(target=serve, args=(theirs, path, calls))
            self.process.start()
        self.ready = False  # until it has said so
        self.at: int | None = None  # the number of the job that it is about
        self.outgrown = self.ended = False
        self._seconds, self._since = START_SECONDS, time.monotonic()

    def is_free(self) -> bool:
        return self.ready and self.at is None and self.process.is_alive()

    def ask(self, at: int, job: Job) -> None:
        """Gives it a job."""
        self.pipe.send((job.call, list(job.responses), job.memory_gib))
        self.at, self._seconds, self._since = at, job.timeout_seconds, time.monotonic()

    def news(self, speaks: bool) -> Found | None:
        """What it says of its job, which is nothing as it starts; or why it was ended, if it talked
        nonsense, was dead or late; or None."""
        try:
            if speaks:
                return self._hear()
            if not self.process.is_alive() and not self.pipe.poll():
                raise EOFError  # a process that it has left behind keeps the pipe open
        except (EOFError, OSError, ValueError):
            self.end(END_SECONDS)
            return Failure(f"its process died ({_cause(self.process.exitcode)})")
        busy = self.at is not None or not self.ready
        if busy and time.monotonic() - self._since > self._seconds:
            self.end()
            return Failure(f"took longer than {self._seconds:g} s")
        return None

    def _hear(self) -> Found:
        outcomes, failure, self.outgrown = json.loads(self.pipe.recv_bytes())
        self.ready, self.at = True, None
        return _outcome(failure) if failure else [_outcome(x) for x in outcomes]

    def end(self, patience_seconds: float = 0.0) -> None:
        """Ends it with all that it has started, even in the middle of C code; it is given a moment
        to end by itself, if it does."""
        self._wait(patience_seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # it may not lead its group yet
        self._wait(END_SECONDS)  # no longer: the kernel may hold one that reads a file
        self.pipe.close()
        self.ended = True

    def _wait(self, seconds: float) -> None:
        """Not by ``join``, which waits for what the process has started as well."""
        until = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < until:
            time.sleep(0.01)


def _cause(code: int | None) -> str:
    """Of a death, by its exit code.

    >>> _cause(3), _cause(-11), _cause(-40)
    ('exit code 3', 'SIGSEGV', 'signal 40')
    """
    if code is None or code >= 0:
        return f"exit code {code}"
    known = {number.value: number.name for number in signal.Signals}
    return known.get(-code, f"signal {-code}")


def _outcome(said: Any) -> Outcome:
    """An outcome, as JSON has it: a failure is a list there."""
    if not isinstance(said, list):
        return said
    reason, frames, traceback = said
    return Failure(reason, tuple(frames), traceback)


_MAIN = threading.Lock()


class _Process(context.SpawnProcess):
    """Is spawned: JAX has threads, which a fork would lose in the middle of their work.

    It does not import the parent's main module anew, as a spawned process does: a trainer's takes
    seconds and hundreds of megabytes, and a script without a guard would run again."""

    def start(self) -> None:
        with _MAIN:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = types.ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = main
