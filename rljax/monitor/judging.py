"""From a response that was read to its verdicts: counted, logged, and written down."""

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from rljax.errors import UserError
from rljax.host.metrics import json_text
from rljax.host.secrets import redact, redacted
from rljax.length_policy import LengthPolicy
from rljax.monitor.responses import Reader, Told
from rljax.monitor.tally import Tally
from rljax.monitor.tokenizer import CountTokens

QUIET_SECONDS = 1.0  # between two warnings of violations
UNCOUNTED = (
    "rljax: a response that the server did not count is not judged: one of several (n > 1), or a "
    "stream without usage; name a tokenizer (RLJAX_MONITOR_TOKENIZER), or have the server tell "
    "usage (stream_options.include_usage, or vLLM's --enable-force-include-usage)"
)

logger = logging.getLogger("rljax.monitor")


class Judge:
    """Judges responses by a policy. But for ``failed``, one thread alone may use it."""

    def __init__(
        self,
        policy: LengthPolicy,
        count_tokens: CountTokens | None,
        *,
        log: str | os.PathLike | None,
        text: bool,
        window: int,
    ):
        """``log``: a file for violations. ``text``: whether it gets the responses' texts too."""
        self._policy, self._count_tokens, self._text = policy, count_tokens, text
        self.keeps_text = (text and log is not None) or count_tokens is not None
        self.tally = Tally(policy, window)
        self._file = None if log is None else _Lines(Path(log))
        self._warned, self._held_back = -QUIET_SECONDS, 0
        self._told_uncounted = False
        self._lock = threading.Lock()

    def conclude(self, reader: Reader, path: str, whole: bool) -> None:
        """Judges a response to a request for ``path``, if it came to its end."""
        self.tally.judged += 1
        try:
            told = reader.told() if whole else None
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            self.tally.unmeasured["unreadable"] += 1
            return
        if told is None:
            self.tally.unmeasured["unfinished"] += 1
            return
        lengths, source = self._lengths(reader, told)
        violations = []
        for completion, length in zip(told.completions, lengths, strict=True):
            if length is None:
                self._uncounted()
                continue
            truncated = completion.reason == "length"
            violated, cost = self.tally.add(told.model, length, truncated)
            if violated:
                record = {
                    "event": "length_violation",
                    "violated": violated,
                    "length_tokens": length,
                    "min_tokens": self._policy.min_tokens,
                    "max_tokens": self._policy.max_tokens,
                    "length_cost": cost,
                    "finish_reason": completion.reason,
                    "counted_by": source,
                    "model": told.model,
                    "path": path,
                    "id": told.id,
                    "index": completion.index,
                }
                violations.append(record)
        self._tell(violations, reader)

    def failed(self, error: Exception) -> None:
        """Counts a fault of the monitor itself; the first is logged."""
        with self._lock:
            self.tally.errors += 1
            first = self.tally.errors == 1
        if first:
            told = redact(f"{type(error).__name__}: {error}")
            logger.error("rljax: the length monitor failed, the server does not: %s", told)

    def _lengths(self, reader: Reader, told: Told) -> tuple[list[int | None], str]:
        """Tokens of each completion, the closing EOS included, and who counted them."""
        if told.choices == 1 and told.usage_tokens is not None:
            return [told.usage_tokens], "usage"
        if self._count_tokens is None:
            return [None] * len(told.completions), ""
        texts = _texts(reader)
        found = [one for one in told.completions if texts.get(one.index) is not None]
        counts = self._count_tokens([texts[one.index] for one in found])
        tokens = {one.index: count + one.by_eos for one, count in zip(found, counts, strict=True)}
        return [tokens.get(one.index) for one in told.completions], "tokenizer"

    def _uncounted(self) -> None:
        self.tally.unmeasured["uncounted"] += 1
        if not self._told_uncounted:
            self._told_uncounted = True
            logger.warning(UNCOUNTED)

    def _tell(self, violations: list[dict[str, Any]], reader: Reader) -> None:
        """Of the completions in one response."""
        written = self._file is not None and bool(violations)
        texts = _texts(reader) if written and self._text else {}
        for record in violations:
            self._warn(record)
            if written:
                text = {"response": texts.get(record["index"])} if self._text else {}
                self._file.write(record | text)

    def _warn(self, record: dict[str, Any]) -> None:
        """At most one line per ``QUIET_SECONDS``, which counts those held back before it."""
        now = time.monotonic()
        if now - self._warned < QUIET_SECONDS:
            self._held_back += 1
            return
        more = f"; {self._held_back} more since the last such line" if self._held_back else ""
        logger.warning(
            "rljax: a response of %d tokens is %s: the band is %d to %d (%s)%s",
            record["length_tokens"],
            " and ".join(record["violated"]),
            record["min_tokens"],
            record["max_tokens"],
            redact(f"model {record['model']!r}, id {record['id']!r}, choice {record['index']}"),
            more,
        )
        self._warned, self._held_back = now, 0


def _texts(reader: Reader) -> dict[int, str | None]:
    """The texts of a response's completions; none if it is too large to be kept."""
    try:
        told = reader.told(texts=True)
    except ValueError:
        return {}
    return {one.index: one.text for one in told.completions} if told else {}


class _Lines:
    """A file that records are appended to. What cannot be written is lost, and told of once."""

    def __init__(self, path: Path):
        self._path, self._told = path, False
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write to the log {path}: {error.strerror}") from error

    def write(self, record: dict[str, Any]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        try:
            self._file.write(f"{json_text(redacted({'time': now, **record}))}\n".encode())
        except OSError as error:
            if not self._told:
                self._told = True
                logger.error("rljax: cannot write to %s: %s", self._path, error.strerror)
