"""What OpenAI-compatible servers answer, and the metrics that the monitor makes of it."""

import itertools
import json

from prometheus_client.parser import text_string_to_metric_families

HEAD = {"id": "cmpl-1", "created": 1, "model": "m"}
DONE = b"data: [DONE]"
COMPACT = (",", ":")  # as pydantic writes JSON; (", ", ": ") as Python does


def usage_of(tokens):
    return {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": tokens + 3}


def body_of(choices, usage=None, **more) -> bytes:
    """Of a completion: ``choices`` are dicts such as {"text": ..., "finish_reason": ...}."""
    numbered = [{"index": index, **choice} for index, choice in enumerate(choices)]
    told = {} if usage is None else {"usage": usage_of(usage)}
    return json.dumps({**HEAD, "object": "text_completion", "choices": numbered, **told}).encode()


def events_of(texts, reasons, usage=None, separators=COMPACT, nulls=False) -> list[bytes]:
    """Lines of a chat stream: the parts of each text, choice by choice in turn, then its reason.

    ``nulls``: every event has "usage": null, as OpenAI's own do that are asked for it.
    """

    def event(choices, **more):
        none = {"usage": None} if nulls else {}
        told = {**HEAD, "object": "chat.completion.chunk", "choices": choices, **none, **more}
        return b"data: " + json.dumps(told, separators=separators).encode()

    def choice(index, delta, reason=None, **more):
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason, **more}

    lines = [event([choice(i, {"role": "assistant", "content": ""})]) for i in range(len(texts))]
    for at in range(max(map(len, texts))):
        lines += [
            event([choice(i, {"content": t[at]})]) for i, t in enumerate(texts) if at < len(t)
        ]
    lines += [event([choice(i, {}, reason)]) for i, reason in enumerate(reasons) if reason]
    if usage is not None:
        lines.append(event([], usage=usage_of(usage)))
    return [*lines, DONE]


def stream_of(lines, end=b"\n") -> bytes:
    return b"".join(line + 2 * end for line in lines)


def cut(data: bytes, places) -> list[bytes]:
    """The parts of some bytes between the ``places``, empty ones too."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def series(text: str) -> dict[str, float]:
    """Metrics of the monitor by their names, without the labels that all of them have."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("source") == "serving"
            if labels.get("model") == HEAD["model"]:
                del labels["model"]
            told = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
            found[f"{sample.name}{{{told}}}" if told else sample.name] = sample.value
    return found
