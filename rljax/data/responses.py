"""Responses that somebody has, by whatever names, as they are judged: a prompt and a text each."""

import json
import reprlib
from collections.abc import Collection
from typing import Any, NamedTuple

from rljax.data.rows import Rows
from rljax.data.values import Row, RowError, said, truth, turns
from rljax.errors import UserError, nearest

NAMES = ("response", "completion", "text")  # of the column of responses, the first that is there
LENGTH = "length"  # the finish_reason of a response that the budget cut off


class Responses(NamedTuple):
    """Responses in the order of their file."""

    rows: Rows  # the prompt, and the columns beside it that are data
    texts: list[str]
    truncated: list[bool]
    greedy: list[bool]
    places: list[dict[str, Any]]  # what a table of samples says of where a row comes from
    note: str  # which columns were recognised

    def groups(self) -> list[int]:
        """The number of every row's prompt: of an evaluation's, and of a file's."""
        keys = [
            (place.get("step"), place.get("prompt_index"), json.dumps(row["prompt"]))
            for place, row in zip(self.places, self.rows.rows, strict=True)
        ]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return [numbers[key] for key in keys]


def find_responses(
    rows: Rows, column: str | None = None, *, leave: Collection[str] = ()
) -> Responses:
    """Prompts and responses of rows as ``rljax samples``, ``rljax eval`` or a server have them.

    A prompt is ``prompt``, or ``messages`` up to the last one, which then is the response, unless
    there is a column for it: ``response``, ``completion`` or ``text``. The budget cut a response
    off if it is ``truncated``, or, as in OpenAI's format, its ``finish_reason`` is "length".

    Args:
      column: that of the responses, if it has another name.
      leave: further columns that are no data.

    Raises ``UserError`` for a column that is missing, and for a value of the wrong type.
    """
    there = list(dict.fromkeys(name for row in rows.rows for name in row))
    if column is not None and column not in there:
        raise UserError(f'{rows.name}: no column "{column}"; {nearest(column, there)}')
    asks = "prompt" if "prompt" in there else "messages"
    answers = column or next((name for name in NAMES if name in there), None)
    if asks not in there or (answers is None and asks != "messages"):
        raise UserError(
            f"{rows.name}: a prompt or messages are needed, and a response, completion or text, "
            f"or another as --response-column; there are {', '.join(there)}"
        )
    numbers = [name for name in ("step", "prompt_index") if _are(int, name, rows)]
    told = [*numbers, *(["source"] if _are(str, "source", rows) else [])]
    own = {asks, answers, "truncated", "finish_reason", "greedy", "event", *numbers, *leave}
    places: list[dict[str, Any]] = []
    kept, texts, truncated, greedy = [], [], [], []
    for index, row in enumerate(rows.rows):
        try:
            prompt, text = _parted(row, asks, answers)
            truncated.append(_is_truncated(row))
            greedy.append(row.get("greedy") is not None and truth(row, "greedy"))
        except RowError as fault:
            raise UserError(f"{rows.where(index)}: {fault}") from None
        kept.append({"prompt": prompt} | {n: x for n, x in row.items() if n not in own})
        texts.append(text)
        places.append({n: row[n] for n in told if row.get(n) is not None})
    words = [f'"{asks}"', f'"{answers}"' if answers else "the last message"]
    words += [f'"{name}"' for name in ("truncated", "finish_reason") if name in there]
    note = f"{rows.name}: {len(kept):,} responses, by {', '.join(words)}"
    return Responses(rows._replace(rows=kept), texts, truncated, greedy, places, note)


def _are(kind: type, name: str, rows: Rows) -> bool:
    """Whether a column holds what a table of samples has by this name; else it is data."""
    values = [row[name] for row in rows.rows if row.get(name) is not None]
    return all(type(x) is kind and (kind is str or abs(x) < 2**63) for x in values)


def _parted(row: Row, asks: str, answers: str | None) -> tuple[Any, str]:
    """The prompt and the response of a row."""
    if row.get(asks) is None:
        raise RowError(f'"{asks}" is missing or null')
    prompt = said(row, asks) if asks == "prompt" else turns(row, asks)
    if answers is not None:
        return prompt, _text(row.get(answers), answers)
    if len(prompt) < 2 or prompt[-1]["role"] != "assistant":
        raise RowError('"messages": the last message is no answer of the assistant\'s')
    return prompt[:-1], prompt[-1]["content"]


def _text(value: Any, column: str) -> str:
    """Text, also of chat messages, of which the assistant's is the last, and of a CSV's numbers."""
    if isinstance(value, list) and value:
        value = turns({column: value}, column)[-1]["content"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise RowError(f'"{column}": expected text, got {reprlib.repr(value)}')
    return value


def _is_truncated(row: Row) -> bool:
    if row.get("truncated") is not None:
        return truth(row, "truncated")
    return row.get("finish_reason") == LENGTH
