"""What the bytes of a server's response tell of the completions in it.

The server is OpenAI-compatible: it answers with one JSON object, or with a stream of them as
server-sent events.
"""

import json
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

MOST_BODY = 2**24  # bytes of a response that is read whole; more is not measured
MOST_NAME = 200  # characters of an id, which a client may have chosen, and of a model's name
AT_ONCE = 16  # events that are parsed before other threads get their turn
FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')  # in no JSON string: its quotes are escaped
ENDS = ("stop", "length", "tool_calls", "function_call")  # reasons of a whole completion
OTHER_PARTS = ("tool_calls", "function_call", "reasoning", "reasoning_content", "refusal", "audio")


class Completion(NamedTuple):
    """One of a response's completions, by the index of its choice."""

    index: int
    reason: str  # why it ended
    by_eos: bool  # as far as the server tells, an EOS ended it: one more token than its text has
    text: str | None = None  # None: not read, or not all of it is text


class Told(NamedTuple):
    """What a response tells."""

    id: str
    model: str
    completions: list[Completion]  # those that came to an end of their own, or of the budget
    choices: int  # completions that ended in any way
    usage_tokens: int | None  # of all completions together, each with the EOS that ended it


class Reader:
    """Takes the bytes of a response as they come, cut anywhere."""

    def __init__(self, streamed: bool, *, keeps_text: bool, encoded: bool = False):
        """``keeps_text``: ``told`` may be asked for the texts. ``encoded``: as gzip is, unread."""
        self._streamed, self._encoded = streamed, encoded
        self._keeps = not encoded and (keeps_text or not streamed)
        self._kept: list[bytes] = []
        self._size = 0
        self._end: list[bytes] = []  # of a stream: from the line on that ends a first completion
        self._end_size = 0
        self._line = b""  # its last one, which may go on

    def feed(self, parts: list[bytes]) -> None:
        data = b"".join(parts)
        self._size += len(data)
        if self._size > MOST_BODY:
            self._kept, self._keeps = [], False
        if self._keeps:
            self._kept.append(data)
        if not self._streamed or self._encoded:
            return
        if not self._end:
            data = self._line + data
            found = FINISHED.search(data)
            if found is None:
                self._line = data[data.rfind(b"\n") + 1 :][-MOST_BODY:]
                return
            data = data[data.rfind(b"\n", 0, found.start()) + 1 :]
        self._end_size += len(data)
        self._end.append(data if self._end_size <= MOST_BODY else b"")

    def told(self, *, texts: bool = False) -> Told | None:
        """Of a whole response; None if no completion in it came to its end.

        Raises ``ValueError`` if it is encoded or too large; that, ``RecursionError``, or one of
        Python's other errors of values and types, for what is not of an OpenAI-compatible server.
        """
        large = self._end_size > MOST_BODY or (not self._keeps and (texts or not self._streamed))
        if self._encoded or large:
            raise ValueError("encoded, or too large")
        if not self._streamed:
            return _told([json.loads(b"".join(self._kept))], texts)
        lines = b"".join(self._kept if texts else self._end).splitlines()
        return _told(_events(lines, every=texts), texts)


def _events(lines: list[bytes], every: bool) -> Iterator[dict[str, Any]]:
    """The objects of a stream; if not ``every`` one, those that end a completion or tell usage."""
    for at, line in enumerate(lines):
        if at % AT_ONCE == 0:
            time.sleep(0)
        if not line.startswith(b"data:") or not (
            every or b'"usage"' in line or FINISHED.search(line)
        ):
            continue
        data = line[len(b"data:") :].strip()
        if data != b"[DONE]":
            yield json.loads(data)


def _told(objects: Iterator[dict[str, Any]] | list[dict[str, Any]], texts: bool) -> Told | None:
    ended: dict[int, Completion] = {}
    choices: set[int] = set()
    parts: dict[int, list[str]] = {}
    not_text: set[int] = set()
    usage, name, model = None, "", ""
    for told in objects:
        name, model = _name(told.get("id") or name), _name(told.get("model") or model)
        usage = (told.get("usage") or {}).get("completion_tokens", usage)
        for choice in told.get("choices") or ():
            index, reason = choice.get("index", 0), choice.get("finish_reason")
            if reason:
                choices.add(index)
            if reason in ENDS:
                stopped_by_text = isinstance(choice.get("stop_reason"), str)
                by_eos = reason != "length" and not stopped_by_text
                ended[index] = Completion(index, reason, by_eos)
            message = choice.get("message") or choice.get("delta") or {}
            if any(message.get(part) for part in OTHER_PARTS):
                not_text.add(index)
            text = choice.get("text") or message.get("content") or ""
            parts.setdefault(index, []).append(text if isinstance(text, str) else "")
            if not isinstance(text, str):
                not_text.add(index)
    if not ended:
        return None
    completions = [
        one._replace(text="".join(parts[index])) if texts and index not in not_text else one
        for index, one in sorted(ended.items())
    ]
    counted = type(usage) is int and usage >= 0
    return Told(name, model, completions, len(choices), usage if counted else None)


def _name(value: Any) -> str:
    """As a label and a log can have it: JSON may hold half a character, which UTF-8 cannot."""
    return str(value)[:MOST_NAME].encode("utf-8", "replace").decode("utf-8")
