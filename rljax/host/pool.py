"""A pool of processes with time limits, for rewards in Python.

It imports no JAX: every process imports this module.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import pickle
import sys
import threading
import types
from collections.abc import Sequence
from multiprocessing import connection, context
from typing import Any, NamedTuple

import pebble

from rljax.signatures import Call, Failure, Outcome, Response, attempt, unpickled

MAX_WORKERS = 8
POOLS = 3  # that may break during one run
LOOK_SECONDS = 1.0  # between two looks at whether the pool still works


class Job(NamedTuple):
    """One call: what it is asked about, and how long it may take."""

    call: bytes  # as RewardPool.prepare gives it
    responses: Sequence[Response]
    timeout_seconds: float


class RewardPool:
    """Processes that are started when they are first needed, and then kept.

    One that hangs is killed and one that dies is missed: another takes its place. They see no
    accelerator of JAX's. ``close`` ends them, as does leaving the pool's context.

    Args:
      workers: how many; by default one for each core, 8 at most.
    """

    def __init__(self, workers: int | None = None):
        self._workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
        self._prepared: list[bytes] = []
        self._pool: pebble.ProcessPool | None = None

    def prepare(self, call: Call) -> bytes:
        """The call as a job names it. Processes started from now on import what it needs at once;
        others on their first such job, within its time limit."""
        pickled = pickle.dumps(call)
        if pickled not in self._prepared:
            self._prepared.append(pickled)
        return pickled

    def run(self, jobs: Sequence[Job]) -> list[list[Outcome]]:
        """The outcomes of every job, which run beside each other."""
        for _ in range(POOLS):
            outcomes = self._attempt(jobs)
            if outcomes is not None:
                return outcomes
        broken = Failure("processes for rewards die as they start")
        return [[broken] * len(job.responses) for job in jobs]

    def close(self) -> None:
        """Ends the processes, whatever they do. A later ``run`` starts others."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _attempt(self, jobs: Sequence[Job]) -> list[list[Outcome]] | None:
        """The outcomes of every job; None if the pool broke, whichever of them was to blame, or
        none: it does when a process dies that has no job."""
        if self._pool is None:
            self._pool = pebble.ProcessPool(
                self._workers,
                initializer=_begin,
                initargs=(list(sys.path), list(self._prepared)),
                context=_Context(),
            )
        try:
            futures = [
                self._pool.schedule(
                    attempt, (job.call, pickle.dumps(job.responses)), timeout=job.timeout_seconds
                )
                for job in jobs
            ]
            while concurrent.futures.wait(futures, timeout=LOOK_SECONDS).not_done:
                if not self._pool.active:
                    raise RuntimeError  # a broken pool may forget jobs that it has not begun
            return [_outcome(job, future) for job, future in zip(jobs, futures, strict=True)]
        except RuntimeError:
            self.close()
            return None


def _outcome(job: Job, future: pebble.ProcessFuture) -> list[Outcome]:
    try:
        return future.result()
    except TimeoutError:
        failure = Failure(f"took longer than {job.timeout_seconds:g} s")
    except pebble.ProcessExpired as error:
        failure = Failure(f"its process died (exit code {error.exitcode})")
    return [failure] * len(job.responses)


def _begin(path: list[str], calls: list[bytes]) -> None:
    """A process begins with what its jobs will import."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.dup2(2, 1)  # standard output is the run's, for lines of JSON
    sys.stdout.reconfigure(line_buffering=True)
    sys.path[:] = path
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    for call in calls:
        with contextlib.suppress(Exception):  # it fails again, and is heard, when it is asked
            unpickled(call)


def _end_with_the_parent() -> None:
    """One that was killed has ended nobody, and a call may never end by itself."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


_MAIN = threading.Lock()


class _Process(context.SpawnProcess):
    """Does not import the parent's main module anew, as a spawned process does: a trainer's takes
    seconds and hundreds of megabytes, and a script without a guard would run again."""

    def start(self) -> None:
        with _MAIN:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = types.ModuleType("__main__")
            try:
                super().start()
            finally:
                sys.modules["__main__"] = main


class _Context(context.SpawnContext):
    """Spawns: JAX has threads, which a fork would lose in the middle of their work."""

    Process = _Process
