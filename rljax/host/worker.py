"""What a process for rewards does: it calls functions within their limits, one after another.

Which call follows which in a process is left to chance, so none may leave anything behind that the
next would find. It imports nothing but the standard library: no JAX, no NumPy.
"""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from types import TracebackType
from typing import Any, NamedTuple

from rljax import signatures
from rljax.signatures import Call, Failure, Outcome, Response, number

LAST_FRAMES = 3
LONGEST_REASON = 500  # characters
LONGEST_TRACEBACK = 4000
STATM = "/proc/self/statm"  # of Linux, where memory is limited
LIMITS_MEMORY = os.path.exists(STATM)
M_ARENA_MAX = -8  # of mallopt, in glibc
OURS = (__file__, signatures.__file__)

_begun_with: int | None = None  # bytes


class Answer(NamedTuple):
    """What a process says of a job, as JSON: an exception of the user's own may not survive the way
    between two processes."""

    outcomes: list[Outcome]
    failure: Failure | None = None  # of the whole job, which then has no outcomes
    outgrown: bool = False  # calls have left so much behind that another should take its place


def serve(pipe: connection.Connection, path: list[str], calls: Sequence[Call]) -> None:
    """The life of a process: it says that it is ready, and then the answer to every job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent decides
    _begin(path, calls)
    answer = Answer([])
    with contextlib.suppress(EOFError):  # the parent has closed the pipe
        while True:
            pipe.send_bytes(json.dumps(answer).encode())
            try:
                job = pipe.recv()
            except EOFError:
                raise
            except Exception as error:  # from within a row, as it is made anew
                failure = _failure(error)
                reason = f"its row did not reach another process ({failure.reason})"
                answer = Answer([], failure._replace(reason=reason))
            else:
                answer = attempt(*job)


def _begin(path: list[str], calls: Sequence[Call]) -> None:
    """A process begins with what its jobs will import."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.dup2(2, 1)  # standard output is the run's, for lines of JSON
    sys.stdout.reconfigure(line_buffering=True)
    sys.path[:] = path
    os.setpgid(0, 0)  # to be ended together with whatever a function starts
    _end_with_the_parent()
    if LIMITS_MEMORY:
        _ready_memory()
    for call in calls:
        with contextlib.suppress(Exception):  # it fails again, and is heard, when it is asked
            call.load()
    global _begun_with
    _begun_with = _address_space()


def attempt(call: Call, responses: list[Response], memory_gib: float | None = None) -> Answer:
    """What a call says of responses. It never raises."""
    process, outcomes, failure = os.getpid(), [], None
    try:
        call.load()  # what an import sets up stays
        with _nothing_left_behind(), _at_most(memory_gib):
            values = call(responses)
            if len(values) != len(responses):
                raise ValueError(f"returned {len(values)} values for {len(responses)} responses")
            outcomes = [_checked(value) for value in values]
    except BaseException as error:  # SystemExit as well
        failure = _failure(error, memory_gib)
    if os.getpid() != process:
        os._exit(0)  # a fork of the function's own is no worker
    return Answer(outcomes, failure, _has_outgrown(memory_gib))


def _end_with_the_parent() -> None:
    """One that was killed has ended nobody, and a call may never end by itself.

    The kernel signals the whole group as the pipe to the parent closes, whatever C code is at work;
    the thread is for systems where pipes do not signal."""
    sentinel = multiprocessing.parent_process().sentinel
    with contextlib.suppress(OSError):
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpgrp())
        flags = fcntl.fcntl(sentinel, fcntl.F_GETFL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)  # SIGIO, which ends a process

    def wait():
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _ready_memory() -> None:
    """Prepares for limits: of address space, and of the kernel's where there is no more memory."""
    with contextlib.suppress(AttributeError, OSError):  # of glibc alone
        # Else every thread of a function reserves 64 MiB, of which it uses little.
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # it is ended before the trainer is


def _address_space() -> int:
    """Bytes that this process has reserved."""
    if not LIMITS_MEMORY:
        return 0
    with open(STATM) as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _has_outgrown(gib: float | None) -> bool:
    """Whether calls have left more memory behind than one may take, or half of all open files."""
    if _begun_with is None or not LIMITS_MEMORY:
        return False
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 < files < 2 * len(os.listdir("/proc/self/fd")):
        return True
    return gib is not None and _address_space() > _begun_with + gib * 2**30


@contextlib.contextmanager
def _at_most(gib: float | None) -> Iterator[None]:
    """No more memory than this beside what the process holds already. Programs that are started
    meanwhile have the same limit."""
    if gib is None or not LIMITS_MEMORY:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    allowed = [_address_space() + int(gib * 2**30), sys.maxsize]
    allowed += [limit for limit in before if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(allowed), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """Undoes what is changed of the process: its folder, environment, import path, standard outputs
    and alarm."""
    folder, environment, path, entries = _folder(), dict(os.environ), sys.path, list(sys.path)
    streams = {1: sys.stdout, 2: sys.stderr}
    copies = {number: os.dup(number) for number in streams}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, copy in copies.items():
            os.dup2(copy, number)
            os.close(copy)
            if getattr(streams[number], "closed", False):
                streams[number] = open(number, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = streams.values()
        sys.path = path
        sys.path[:] = entries
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        with contextlib.suppress(OSError):  # it is gone
            os.chdir(folder)


def _checked(value: Any) -> Outcome:
    try:
        return None if value is None else number(value)
    except Exception as error:
        return _failure(error)


def _failure(error: BaseException, memory_gib: float | None = None) -> Failure:
    no_memory = isinstance(error, MemoryError)
    try:
        reason = _line("".join(traceback.format_exception_only(error)))
        no_memory |= isinstance(error, OSError) and error.errno == errno.ENOMEM
    except Exception:  # of the exception's own making
        reason = type(error).__name__
    if no_memory and memory_gib is not None and LIMITS_MEMORY:
        reason = f"needed more than {memory_gib:g} GiB of memory ({reason})"
    frames = _theirs(error)
    places = (
        f"{_short(frame.f_code.co_filename)}:{line} in {frame.f_code.co_name}"
        for frame, line in list(traceback.walk_tb(frames))[-LAST_FRAMES:]
    )
    return Failure(reason, tuple(places), _traceback(error, frames))


def _theirs(error: BaseException) -> TracebackType | None:
    """The frames of an exception that are the user's own: those within our last."""
    frames = list(_frames(error.__traceback__))
    ours = [i for i, frame in enumerate(frames) if _file(frame) in OURS]
    theirs = frames[ours[-1] + 1 :] if ours else frames
    theirs = itertools.dropwhile(lambda frame: "importlib" in _file(frame), theirs)
    return next(theirs, None)


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _file(frame: TracebackType) -> str:
    return frame.tb_frame.f_code.co_filename


def _traceback(error: BaseException, trace: TracebackType | None) -> str:
    """The end of what Python prints of an exception with these frames; nothing if it has none."""
    if trace is None:
        return ""
    try:
        pieces = traceback.format_exception(type(error), error, trace, limit=-100)
    except Exception:
        return ""
    text = "".join(piece if len(piece) <= 1000 else piece[:1000] + "…\n" for piece in pieces)
    if len(text) > LONGEST_TRACEBACK:
        text = "…\n" + text[-LONGEST_TRACEBACK:].partition("\n")[2]
    return _sendable(text)


def _line(text: str) -> str:
    """Text of any length on one line."""
    words = " ".join(text[: 2 * LONGEST_REASON].split())
    return _sendable(words if len(words) <= LONGEST_REASON else words[:LONGEST_REASON] + "…")


def _sendable(text: str) -> str:
    """Text that any output can show: surrogates have no place in UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _short(path: str) -> str:
    return path.removeprefix(_folder() + os.sep)


def _folder() -> str:
    """The working directory; where it is gone, what it was never called."""
    try:
        return os.getcwd()
    except OSError:
        return os.devnull
