"""From tokens to text, a few at a time: no broken characters, and nothing of a stop string."""

from collections.abc import Sequence

BROKEN = "\ufffd"  # what stands for bytes that are no character, or not yet


class Decoder:
    """The text of tokens that come one after another.

    What is told, put together, is the text of all of them: the tokens before the new ones are
    decoded with them, as a space may depend on these, and bytes wait for the rest of a character.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = self._told = 0  # where the tokens begin that are decoded, that are new

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens add."""
        self._ids += ids
        text = self._new()
        if not text or text.endswith(BROKEN):
            return ""
        self._context, self._told = self._told, len(self._ids)
        return text

    def flush(self) -> str:
        """What still waits, as there is no more to come."""
        text = self._new()
        self._context = self._told = len(self._ids)
        return text

    def _new(self) -> str:
        before = self._decode(self._ids[self._context : self._told])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


class Stops:
    """Text that ends before the first of some strings, of which no beginning is told.

    >>> stops = Stops(["end"])
    >>> stops.push("an e"), stops.push("m, an en"), stops.push("d, and more")
    ('an ', 'em, an ', '')
    >>> stops.met
    'end'
    """

    def __init__(self, strings: Sequence[str]):
        self._strings = tuple(strings)
        self._held = ""
        self.met: str | None = None  # the one that ended it

    def push(self, text: str) -> str:
        """What can be told now that ``text`` has come."""
        self._held += text
        found = [(at, s) for s in self._strings if (at := self._held.find(s)) >= 0]
        if found:
            at, self.met = min(found)
            told, self._held = self._held[:at], ""
            return told
        wait = max((_beginning(self._held, string) for string in self._strings), default=0)
        cut = len(self._held) - wait
        told, self._held = self._held[:cut], self._held[cut:]
        return told

    def flush(self) -> str:
        """What was held back, as there is no more to come."""
        told, self._held = self._held, ""
        return told


def _beginning(text: str, string: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``string``."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
