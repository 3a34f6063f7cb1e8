"""``python tests/reward_faults.py``: rewards that fail, what is expected of each, and what is seen.

Each is asked once, in one pool, and behind each a sound reward, which must find nothing amiss. The
table is Markdown.
"""

import asyncio
import contextlib
import ctypes
import datetime
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from rljax.host.pool import Job, RewardPool
from rljax.signatures import Failure, Outcome, Response, Trl, Verl

AT_ONCE = 0.5  # seconds, for what never ends
LONG = 30.0  # and for what does
ROW = {
    "prompt": "1+1=",
    "when": datetime.datetime(2024, 2, 3, tzinfo=datetime.timezone.utc),  # noqa: UP017
    "raw": b"\xff\x00",
    "deep": [{"a": [None, 1.5]}],
}
PYTHON = "TypeError: returned {}, not a number"
FINITE = "ValueError: returned {}, which is not finite in 32 bits"


class Case(NamedTuple):
    """A fault, and what must come of it."""

    what: str
    does: Callable
    expected: float | str  # a value, or how the reason of the failure begins
    batch: bool = False  # TRL's signature, for three responses, else verl's, for one
    seconds: float = LONG
    memory_gib: float | None = 4.0


def raising(error):
    raise error


class StubbornError(Exception):
    """Cannot be pickled, printed, or copied."""

    def __init__(self):
        super().__init__(lambda: 0)

    def __str__(self):
        raise RuntimeError

    __reduce__ = __repr__ = __str__


class Liar:
    """Neither a number nor fit to be shown."""

    def __float__(self):
        raise SystemExit(1)

    def __repr__(self):
        raise RuntimeError


class FromAfar:
    """In a row, it can be sent, but not be made anew on arrival."""

    def __reduce__(self):
        return lost, ()


def lost():
    raise LookupError("where am I?")


def spin():
    while True:
        pass


def recursion():
    return recursion() + 1


def fill():
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def fill_with_small():
    kept = []
    while True:
        kept.append(object())


def threads():
    """Forty at once have need of little, but would reserve much."""
    met = threading.Barrier(40)
    started = [threading.Thread(target=lambda: (bytearray(1000), met.wait())) for _ in range(40)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return 1.0


def flood():
    for number in (1, 2):
        os.write(number, b"x" * (1 << 20) + b"\n")
    print("y" * (1 << 20))
    return 1.0


def close_outputs():
    sys.stdout.close()
    for number in (1, 2):
        with contextlib.suppress(OSError):
            os.close(number)
    return 1.0


def linger():
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    return 1.0


def linger_and_leave():
    linger()
    os._exit(3)


def return_twice():
    return 1.0 if os.fork() else 2.0


def move():
    os.chdir("/")
    os.environ.clear()
    sys.path[:] = []
    sys.stdout = sys.stderr = None
    return 1.0


def alarm():
    signal.alarm(1)
    return 1.0


def caught():
    """A function that takes care of its own need of memory."""
    try:
        return float(len(bytearray(1 << 40)))
    except MemoryError:
        return 0.5


async def never():
    await asyncio.Event().wait()


CASES = [
    Case("raises", lambda: raising(ValueError("too much")), "ValueError: too much"),
    Case("raises SystemExit", lambda: sys.exit(3), "SystemExit: 3"),
    Case("raises a BaseException", lambda: raising(BaseException("b")), "BaseException: b"),
    Case("raises KeyboardInterrupt", lambda: raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    Case(
        "raises what can be neither pickled nor printed",
        lambda: raising(StubbornError()),
        "reward_faults.StubbornError: <exception str() failed>",
    ),
    Case("raises 10 MB of text", lambda: raising(ValueError("x" * 10**6)), "ValueError: xxx"),
    Case("raises text with no place in UTF-8", lambda: raising(ValueError("\ud800")), "ValueError"),
    Case("recurses for ever", recursion, "RecursionError: maximum recursion depth exceeded"),
    Case("spins in Python", spin, "took longer than 0.5 s", seconds=AT_ONCE),
    Case("sleeps in C", lambda: time.sleep(60), "took longer than 0.5 s", seconds=AT_ONCE),
    Case(
        "sleeps in C with Python's lock",
        lambda: ctypes.PyDLL(None).sleep(60),
        "took longer than 0.5 s",
        seconds=AT_ONCE,
    ),
    Case(
        "searches with an exponential pattern",
        lambda: re.search("(a+)+$", "a" * 60 + "b"),
        "took longer than 0.5 s",
        seconds=AT_ONCE,
    ),
    Case("is a coroutine that never ends", never, "took longer than 0.5 s", seconds=AT_ONCE),
    Case("gives text", lambda: "1", PYTHON.format("'1'")),
    Case("gives None (verl)", lambda: None, PYTHON.format("None")),
    Case("gives NaN", lambda: math.nan, FINITE.format("nan")),
    Case("gives infinity", lambda: -math.inf, FINITE.format("-inf")),
    Case("gives 10**400", lambda: 10**400, "ValueError: returned 1000"),
    Case("gives 10**10000", lambda: 10**10000, "ValueError: returned"),
    Case("gives True", lambda: True, 1.0),
    Case("gives a complex number", lambda: 1j, PYTHON.format("1j")),
    Case("gives a dict without score", lambda: {}, 'ValueError: returned a dict without "score"'),
    Case("gives an object that lies", Liar, "SystemExit: 1"),
    Case("gives 100 MB of text", lambda: "x" * 10**8, PYTHON.format("'xxxxxxxxxxxx")[:30]),
    Case(
        "gives a million items",
        lambda: [0.0] * 10**6,
        PYTHON.format("a list of 1000000 items"),
    ),
    Case(
        "gives a million values",
        lambda: [0.0] * 10**6,
        "ValueError: returned 1000000 values for 3 responses",
        batch=True,
    ),
    Case(
        "gives too few values",
        lambda: [1.0],
        "ValueError: returned 1 values for 3 responses",
        batch=True,
    ),
    Case("gives nested lists", lambda: [[1.0]] * 3, PYTHON.format("[1.0]"), batch=True),
    Case(
        "gives a number for a list", lambda: 1.0, "TypeError: returned 1.0, not a list", batch=True
    ),
    Case(
        "gives values without end",
        lambda: iter(int, 1),
        "needed more than 0.0625 GiB of memory (MemoryError)",
        batch=True,
        memory_gib=0.0625,
    ),
    Case("leaves its process", lambda: os._exit(3), "its process died (exit code 3)"),
    Case("leaves it as if all were well", lambda: os._exit(0), "its process died (exit code 0)"),
    Case(
        "kills its process",
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        "its process died (SIGKILL)",
    ),
    Case("reads where no memory is", lambda: ctypes.string_at(0), "its process died (SIGSEGV)"),
    Case("closes all files", lambda: os.closerange(0, 1000), "its process died"),
    Case(
        "fills memory",
        fill,
        "needed more than 0.0625 GiB of memory (MemoryError)",
        memory_gib=0.0625,
    ),
    Case(
        "fills memory with small objects",
        fill_with_small,
        "needed more than 0.0625 GiB of memory (MemoryError)",
        memory_gib=0.0625,
    ),
    Case(
        "asks for 1 TiB at once",
        lambda: bytearray(1 << 40),
        "needed more than 4 GiB of memory (MemoryError)",
    ),
    Case("has an answer where there is no memory", caught, 0.5),
    Case("starts forty threads in little memory", threads, 1.0, memory_gib=0.75),
    Case("floods standard output", flood, 1.0),
    Case("closes standard output", close_outputs, 1.0),
    Case("leaves a process behind", linger, 1.0),
    Case(
        "leaves a process behind, and its own",
        linger_and_leave,
        "its process died (exit code 3)",
        seconds=5.0,
    ),
    Case("forks and returns twice", return_twice, 1.0),
    Case("changes folder, environment, path and outputs", move, 1.0),
    Case("leaves an alarm", alarm, 1.0),
]


def verl(which, **kwargs):
    return CASES[which].does()


def trl(which, **kwargs):
    return CASES[which[0]].does()


def sound(folder, data_source, solution_str, ground_truth, extra_info):
    """1 if nothing is amiss: neither in the process nor in what it is told."""
    print(end="", flush=True)
    return (
        os.getcwd() == folder
        and "PATH" in os.environ
        and __file__.startswith(tuple(sys.path))
        and all(os.fstat(number) for number in (1, 2))
        and (data_source, ground_truth, extra_info) == (ROW["raw"], ROW["when"], ROW["deep"])
        and solution_str == "2"
    )


def observe(workers: int = 2) -> list[tuple[Outcome, Outcome]]:
    """The outcome of every case, and of the sound reward behind it."""
    fine = Verl("reward_faults:sound", {"folder": os.getcwd()}, "raw", "when", "deep")
    jobs = []
    for which, case in enumerate(CASES):
        asked = [Response({"which": which, "prompt": ""}, "2", [1])] * (3 if case.batch else 1)
        call = Trl("reward_faults:trl") if case.batch else kwargs_call(which)
        jobs.append(Job(call, asked, case.seconds, case.memory_gib))
        jobs.append(Job(fine, [Response(ROW, "2", [1])], LONG, 4.0))
    with RewardPool(workers) as pool:
        pool.prepare(fine)
        found = [outcomes[0] for outcomes in pool.run(jobs)]
    return list(zip(found[::2], found[1::2], strict=True))


def kwargs_call(which: int) -> Verl:
    return Verl("reward_faults:verl", {"which": which}, "prompt", None, "deep")


def as_expected(case: Case, outcome: Outcome) -> bool:
    if isinstance(case.expected, str):
        return isinstance(outcome, Failure) and outcome.reason.startswith(case.expected)
    return outcome == case.expected


def main() -> int:
    quiet = os.open(os.devnull, os.O_WRONLY)
    loud = os.dup(2)
    os.dup2(quiet, 2)  # what they print
    results = observe()
    os.dup2(loud, 2)
    print("| a reward that … | expected | observed | the next call | |\n|---|---|---|---|---|")
    wrong = 0
    for case, (outcome, following) in zip(CASES, results, strict=True):
        good = as_expected(case, outcome) and following == 1.0
        wrong += not good
        seen = outcome.reason[:80] if isinstance(outcome, Failure) else outcome
        cells = (case.what, case.expected, seen, following, "as expected" if good else "NOT")
        print("|", " | ".join(str(cell).replace("|", r"\|") for cell in cells), "|")
    print(f"\n{len(CASES) - wrong} of {len(CASES)} as expected")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
