"""Writing files so that a crash or a full disk leaves nothing half written behind."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, or leaves the one that is there as it is. Raises ``OSError`` then."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def ends_with_a_line(path: Path) -> bool:
    """Whether no crash has left the beginning of a line at the end of a file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"", b"\n")


class Appending:
    """A file that text is appended to. What cannot be written is kept, and tried again with what
    comes next; ``report`` gets a line when that begins, and when text is lost in the end."""

    def __init__(self, path: Path, report: Callable[[str], None]):
        self._path, self._report = path, report
        self._file = path.open("ab", buffering=0)
        self._pending = b"" if ends_with_a_line(path) else b"\n"
        self._failing = False

    def write(self, text: str) -> None:
        self._pending += text.encode()
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._failing = True
                self._report(f"cannot write to {self._path}: {error.strerror}; trying on")

    def close(self) -> None:
        self.write("")
        if self._pending:
            self._report(f"{self._path} lacks its last {len(self._pending)} bytes")
        self._file.close()
