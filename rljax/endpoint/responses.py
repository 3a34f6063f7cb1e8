"""Responses while they are drawn: what was asked of each, and what it has more."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from rljax.endpoint.text import Decoder, Stops

LEAST_LOGPROB = -9999.0  # in place of −∞, which JSON has no word for


class Sampling(NamedTuple):
    """How the responses of a request are drawn."""

    max_tokens: int
    seed: int
    temperature: float = 1.0  # 0 takes the most probable token
    top_k: int = 0  # 0 is no limit
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    alternatives: int | None = None  # told beside each token; None: no log-probs at all


class Token(NamedTuple):
    """One that was drawn, with its log-prob and those of the most probable ones."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int  # characters of the response before it


class Delta(NamedTuple):
    """What one response has more."""

    index: int
    text: str
    count: int  # tokens, with the EOS and those of a stop string
    tokens: tuple[Token, ...]  # if log-probs were asked for
    finish: str | None  # stop, length
    stopped_by: str | None  # the stop string that ended it


Deliver = Callable[[list[Delta] | Exception], None]


@dataclass
class Job:
    """A request: its responses, and where their parts go, as they come."""

    deliver: Deliver
    cancelled: bool = False  # nobody reads what comes


@dataclass
class Response:
    """One response of a request."""

    job: Job
    index: int
    prompt: list[int]
    sampling: Sampling
    decoder: Decoder
    stops: Stops
    drawn: int = 0
    length: int = 0  # characters, a stop string's included

    @classmethod
    def begin(
        cls, job: Job, index: int, prompt: list[int], sampling: Sampling, tokenizer
    ) -> "Response":
        return cls(job, index, prompt, sampling, Decoder(tokenizer), Stops(sampling.stop))

    def take(self, ids: list[int], ended: bool, last: bool, token_of: Callable) -> Delta:
        """Adds tokens. ``ended``: the last of them is an EOS; ``last``: no more may come."""
        told, tokens, count = "", [], 0
        alone = bool(self.sampling.stop) or self.sampling.alternatives is not None
        size = 1 if alone else max(len(ids), 1)
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            count += len(part)
            if self.sampling.alternatives is not None:
                tokens.append(token_of(start, self.length))
            final = start + len(part) == len(ids)
            text = self.decoder.push(part[:-1] if ended and final else part)
            if final and (ended or last):
                text += self.decoder.flush()
            self.length += len(text)
            told += self.stops.push(text)
            if self.stops.met:
                break
        finish = "stop" if self.stops.met or ended else "length" if last else None
        if finish:
            told += self.stops.flush()
        self.drawn += count
        return Delta(self.index, told, count, tuple(tokens), finish, self.stops.met)


def finite(logprob) -> float:
    """A log-prob that JSON can write."""
    return max(float(logprob), LEAST_LOGPROB)
