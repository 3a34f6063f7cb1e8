"""Answers of OpenAI's API: whole ones, and the parts of a stream."""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rljax.endpoint.protocol import Asked
from rljax.endpoint.responses import Delta, Token


class Reply:
    """The answer to one request, from the parts of its responses."""

    def __init__(self, asked: Asked, model: str, tokenizer):
        self._asked, self._tokenizer = asked, tokenizer
        kind = "chat.completion" if asked.chat else "text_completion"
        if asked.chat and asked.stream:
            kind += ".chunk"
        prefix = "chatcmpl" if asked.chat else "cmpl"
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        self._drawn = 0
        self._begun: set[int] = set()
        self._unfinished = len(asked.prompts) * asked.n

    @property
    def finished(self) -> bool:
        return not self._unfinished

    def events(self, deltas: Sequence[Delta]) -> Iterator[bytes]:
        """What a stream sends of some parts; behind the last of them, usage and the end."""
        for delta in deltas:
            self._count(delta)
            if delta.text or delta.tokens or delta.finish:
                yield self._event([self._part(delta)])
        if self.finished:
            if self._asked.include_usage:
                yield event({**self._head, "choices": [], "usage": self._usage()})
            yield b"data: [DONE]\n\n"

    def whole(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The answer in one piece, from all parts."""
        by_index: dict[int, list[Delta]] = {}
        for delta in deltas:
            self._count(delta)
            by_index.setdefault(delta.index, []).append(delta)
        choices = [self._choice(by_index[index]) for index in sorted(by_index)]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _count(self, delta: Delta) -> None:
        self._drawn += delta.count
        self._unfinished -= delta.finish is not None

    def _usage(self) -> dict[str, int]:
        """Of the tokens that were read and drawn, EOS included, as training counts them."""
        read = sum(map(len, self._asked.prompts))
        return {
            "prompt_tokens": read,
            "completion_tokens": self._drawn,
            "total_tokens": read + self._drawn,
        }

    def _event(self, choices: list[dict[str, Any]]) -> bytes:
        usage = {"usage": None} if self._asked.include_usage else {}
        return event({**self._head, "choices": choices, **usage})

    def _part(self, delta: Delta) -> dict[str, Any]:
        if self._asked.chat:
            first = {} if delta.index in self._begun else {"role": "assistant"}
            self._begun.add(delta.index)
            content = {"delta": {**first, "content": delta.text}}
        else:
            content = {"text": delta.text}
        logprobs = self._logprobs(delta.tokens)
        return self._as_choice(delta, content, logprobs)

    def _choice(self, deltas: list[Delta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        message = {"message": {"role": "assistant", "content": text}}
        content = message if self._asked.chat else {"text": text}
        logprobs = self._logprobs([token for delta in deltas for token in delta.tokens])
        return self._as_choice(deltas[-1], content, logprobs)

    def _as_choice(self, last: Delta, content, logprobs) -> dict[str, Any]:
        """``stop_reason`` is vLLM's: it tells a stop string from an EOS."""
        ended = {"finish_reason": last.finish, "stop_reason": last.stopped_by}
        return {"index": last.index, **content, "logprobs": logprobs, **ended}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._asked.sampling.alternatives is None:
            return None
        if self._asked.chat:
            return {"content": [self._chat_token(token) for token in tokens]}
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }

    def _top(self, token: Token) -> dict[str, float]:
        """Of several tokens with one text, the most probable; the token itself is there too."""
        told: dict[str, float] = {}
        for other, logprob in (*token.top, (token.id, token.logprob)):
            told.setdefault(self._text(other), logprob)
        return told

    def _chat_token(self, token: Token) -> dict[str, Any]:
        top = [self._named(other, logprob) for other, logprob in token.top]
        return {**self._named(token.id, token.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token])


def event(tree: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(tree, ensure_ascii=False).encode("utf-8") + b"\n\n"
