"""Stopping a run between two steps, because it was asked to or its time is up, and on all its
processes at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from rljax.errors import UserError
from rljax.host.agree import is_writer, largest
from rljax.host.secrets import say

INTERRUPTED = 130  # as shells have it
TRY_AGAIN = 75  # EX_TEMPFAIL: the same command goes on from here
CODES = {signal.SIGTERM: TRY_AGAIN, signal.SIGINT: INTERRUPTED}
WORDS = {TRY_AGAIN: "terminated", INTERRUPTED: "interrupted"}
OUT_OF_TIME = "out of time"
PATIENT_SECONDS = 5.0  # that work which can be done again is given to come to an end
EARLY_SECONDS = 10.0  # before its time is up, in which a run that has nothing to save ends


class TransientError(UserError):
    """What may pass by itself: the command exits with ``TRY_AGAIN``."""


class Stopped(BaseException):
    """The run was asked to stop, which is no error. ``code``: what the command is to exit with, and
    ``words``: why."""

    def __init__(self, code: int, words: str = ""):
        super().__init__(code)
        self.code, self.words = code, words or WORDS[code]


class Stopping:
    """Says when a run is to stop: never, by itself."""

    unsaved = False  # whether work would be lost if the process ended now

    def check(self, needed_seconds: float = 0.0) -> None:
        """Raises ``Stopped`` if the run is to stop now rather than in ``needed_seconds``."""


class Signals(Stopping):
    """Within it SIGTERM, the first Ctrl-C and the end of the time make ``check`` raise, on all
    processes.

    Where nothing is ``unsaved`` the process ends by itself if ``check`` is not called soon: it may
    be compiling. The second Ctrl-C ends it at once. A thread of its own sees to both, as the main
    one may be in C++, and an exception thrown into the middle of a step can be lost.

    It must be entered after JAX has joined other processes: that takes SIGTERM for itself.
    """

    def __init__(
        self,
        time_limit_seconds: float | None = None,
        leave: Callable[[str, int], NoReturn] | None = None,
    ):
        """``leave(words, code)`` ends the process, by default with these words on a line."""
        self._leave = leave or leave_at_once
        self._code, self._words = 0, ""
        self._answered = threading.Event()  # the main thread is on its way out
        self._end = None if time_limit_seconds is None else time.monotonic() + time_limit_seconds
        self._before: dict[signal.Signals, Any] = {}
        self._lock = threading.Lock()

    def check(self, needed_seconds: float = 0.0) -> None:
        late = self._end is not None and time.monotonic() + needed_seconds > self._end
        if late:
            self._stop(TRY_AGAIN, OUT_OF_TIME)
        code = largest(self._code)
        if code:
            self._answered.set()
            raise Stopped(code, self._words)

    def __enter__(self) -> "Signals":
        self._pipe, self._entry = os.pipe()
        os.set_blocking(self._entry, False)
        self._fd_before = signal.set_wakeup_fd(self._entry, warn_on_full_buffer=False)
        # A handler of Python's own, for the number to be written to the pipe.
        self._before = {number: signal.signal(number, lambda *_: None) for number in CODES}
        threading.Thread(target=self._listen, daemon=True).start()
        if self._end is not None:
            threading.Thread(target=self._watch_time, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._answered.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._entry)  # the thread that listens comes to the end of the pipe

    def _listen(self) -> None:
        interrupts = 0
        while read := os.read(self._pipe, 1):
            number = read[0]
            if number not in CODES:
                continue
            interrupts += number == signal.SIGINT
            if interrupts > 1:
                self._leave(WORDS[INTERRUPTED], INTERRUPTED)
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            self._stop(CODES[signal.Signals(number)], again=again)
        os.close(self._pipe)

    def _watch_time(self) -> None:
        if not self._answered.wait(max(self._end - time.monotonic() - EARLY_SECONDS, 0.0)):
            self._stop(TRY_AGAIN, OUT_OF_TIME)

    def _stop(self, code: int, why: str = "", again: str = "") -> None:
        """From now on ``check`` raises."""
        with self._lock:
            if self._code and not again:
                return  # it was said
            if is_writer():
                before = f"{why}: " if why else ""
                when = " after this step" if self.unsaved else ""
                say(f"{before}stopping{when}{again}")
            if code > self._code:
                self._code, self._words = code, why or WORDS[code]
        threading.Thread(target=self._lose_patience, args=(code,), daemon=True).start()

    def _lose_patience(self, code: int) -> None:
        patient_until = time.monotonic() + PATIENT_SECONDS
        while not self._answered.wait(0.1):
            if time.monotonic() > patient_until and not self.unsaved:
                self._leave(self._words, code)


def leave_at_once(words: str, code: int) -> NoReturn:
    """Ends the process, whatever its other threads do."""
    say(words)
    sys.stdout.flush()
    os._exit(code)
