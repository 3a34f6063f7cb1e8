"""Rows to learn preferences from, made of the responses that an evaluation sampled and judged."""

import reprlib
from typing import Any

from rljax.data import read_rows
from rljax.errors import UserError

COLUMNS = {
    "prompt_index": int,
    "prompt": str | list,
    "response": str,
    "greedy": bool,
    "truncated": bool,
    "correct": bool | None,
}


def sampled_pairs(file: str, *, heldout: bool) -> list[dict[str, Any]]:
    """Pairs of a correct response and a wrong one to the same prompt, as many as both allow.

    Args:
      file: ``samples.jsonl`` of ``rljax eval``. Every tenth prompt is held out.

    Raises ``UserError`` if no prompt has responses of both kinds.
    """
    rows = []
    for responses in _by_prompt(file, heldout):
        right, wrong = (
            list(dict.fromkeys(r["response"] for r in responses if r["correct"] is kind))
            for kind in (True, False)
        )
        prompt = responses[0]["prompt"]
        rows += [
            {"prompt": prompt, "chosen": _answer(prompt, good), "rejected": _answer(prompt, bad)}
            for good, bad in zip(right, wrong, strict=False)
        ]
    if not rows:
        which = "no prompt that is held out" if heldout else "no prompt"
        raise UserError(f"{file}: {which} has both correct and wrong responses")
    return rows


def sampled_labels(file: str, *, heldout: bool) -> list[dict[str, Any]]:
    """Every response with whether it was correct as its label; ``file`` as of ``sampled_pairs``."""
    return [
        {
            "prompt": r["prompt"],
            "completion": _answer(r["prompt"], r["response"]),
            "label": r["correct"],
        }
        for responses in _by_prompt(file, heldout)
        for r in responses
    ]


def _answer(prompt: str | list, response: str) -> str | list[dict[str, str]]:
    """A response as the prompt is: text, or chat messages."""
    return response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]


def _by_prompt(file: str, heldout: bool) -> list[list[dict[str, Any]]]:
    """The judged responses that were sampled, prompt by prompt."""
    samples = read_rows(file)
    prompts: dict[int, list[dict[str, Any]]] = {}
    for index, record in enumerate(samples.rows):
        if lacking := COLUMNS.keys() - record.keys():
            names = ", ".join(sorted(lacking))
            raise UserError(
                f"{samples.where(index)}: lacks {names}; samples.jsonl of `rljax eval` is needed"
            )
        for name, kind in COLUMNS.items():
            if not isinstance(record[name], kind):
                got = reprlib.repr(record[name])
                raise UserError(f'{samples.where(index)}: "{name}" is {got}, of another type')
        finished = not record["greedy"] and not record["truncated"]
        if finished and record["correct"] is not None and record["response"]:
            prompts.setdefault(record["prompt_index"], []).append(record)
    return [rows for index, rows in prompts.items() if (index % 10 == 0) == heldout]
