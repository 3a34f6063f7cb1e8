"""What libraries in C++ print, kept apart from what the run prints.

They write to both standard outputs by themselves: Gloo greets on the one that is for lines of JSON,
and the runtime fills the other with a stack trace when another process is gone. So both lead into a
pipe, from where the lines go on to standard error, a moment later: late enough for a process that
ends to drop them and to say in one line what happened.
"""

import contextlib
import fcntl
import os
import sys
import threading

DELAY_SECONDS = 1.0
PIPE_BYTES = 1 << 20  # that may be printed at once, before who prints has to wait
GREETINGS = (b"[Gloo] Rank ", b"connected peer ranks")  # of which half a line may be read


class Chatter:
    """From when it is made until ``restore``; ``sys.stdout`` and ``sys.stderr`` are the run's."""

    def __init__(self):
        sys.stdout.flush()
        sys.stderr.flush()
        self._real = os.dup(1), os.dup(2)
        sys.stdout, sys.stderr = (
            os.fdopen(os.dup(real), "w", buffering=1, encoding="utf-8") for real in self._real
        )
        self._pipe, entry = os.pipe()
        with contextlib.suppress(AttributeError, OSError):  # of Linux; elsewhere it is smaller
            fcntl.fcntl(entry, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        for number in (1, 2):
            os.dup2(entry, number)
        os.close(entry)
        os.set_blocking(self._pipe, False)
        self._reading = threading.Lock()
        self._held = b""
        self._restored = threading.Event()
        threading.Thread(target=self._forward, daemon=True).start()

    def take(self) -> bytes:
        """What was printed last, and is then not passed on."""
        with self._reading:
            self._read()
            taken, self._held = self._held, b""
        return taken

    def pass_on(self, text: bytes) -> None:
        """To standard error, but for greetings, and for empty lines, as may be left of them."""
        lines = [
            line
            for line in text.splitlines(True)
            if line.strip() and not any(part in line for part in GREETINGS)
        ]
        with contextlib.suppress(OSError):  # nobody reads any more
            os.write(self._real[1], b"".join(lines))

    def restore(self) -> None:
        """Passes on what is left, and leads both outputs to where they led before."""
        self._restored.set()
        for number, real in enumerate(self._real, start=1):
            os.dup2(real, number)
        self.pass_on(self.take())

    def _forward(self) -> None:
        while not self._restored.wait(DELAY_SECONDS):
            with self._reading:
                lines, newline, rest = self._held.rpartition(b"\n")
                self._held = rest  # half a greeting would not be known for one
                self._read()
            self.pass_on(lines + newline)

    def _read(self) -> None:
        try:
            while part := os.read(self._pipe, 1 << 16):
                self._held += part
        except BlockingIOError:
            return
