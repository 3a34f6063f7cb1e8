"""Stopping a run between two steps, because it was asked to, and on all its processes at once."""

import signal
import sys
from typing import Any

from rljax.errors import UserError
from rljax.host.agree import is_writer, largest

INTERRUPTED = 130  # as shells have it
TRY_AGAIN = 75  # EX_TEMPFAIL: the same command goes on from here
CODES = {signal.SIGTERM: TRY_AGAIN, signal.SIGINT: INTERRUPTED}


class TransientError(UserError):
    """What may pass by itself: the command exits with ``TRY_AGAIN``."""


class Stopped(BaseException):
    """The run was asked to stop, which is no error. ``code``: what the command is to exit with."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Signals:
    """Within it SIGTERM, and the first Ctrl-C, only make ``check`` raise, on all processes; a
    KeyboardInterrupt in the middle of a step can be lost. The second Ctrl-C stops at once.

    It must be entered after JAX has joined other processes: that takes SIGTERM for itself.
    """

    def __init__(self):
        self._code = 0
        self._before: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Raises ``Stopped`` if this process, or another of the run, was asked to stop."""
        code = largest(self._code)
        if code:
            raise Stopped(code)

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._note) for number in CODES}
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self._code = max(self._code, CODES[signal.Signals(number)])
        again = ""
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            again = "; Ctrl-C again stops at once"
        if is_writer():
            print(f"rljax: stopping after this step{again}", file=sys.stderr)
