"""From rows to tokens: prompts to answer, and sequences to learn from as they are given."""

from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Several
from typing import Any, NamedTuple

import numpy as np

from rljax.data.arrays import column, fingerprint_of, pad
from rljax.data.chat import (
    NO_KEYWORDS,
    Answered,
    encode_answers,
    encode_conversations,
    encode_prompts,
)
from rljax.data.limits import Limits, Report, cropped, left, names, parts, rows_at
from rljax.data.rows import Rows
from rljax.data.sequences import Sequence, SequenceTable
from rljax.errors import UserError
from rljax.types import PYTHON_REWARD, REWARD_CROPPED, REWARD_TOKENS, ROW, Prompts

RESERVED = frozenset({ROW, REWARD_TOKENS, REWARD_CROPPED})


class PromptTable:
    """Prompts and the columns beside them, as arrays over all rows.

    ``rows`` are those kept, ``parts`` the indices of each source's, and ``note`` says how many.
    """

    def __init__(
        self,
        sources: list[Rows],
        tokenizer,
        limits: Limits,
        chat_template: Mapping[str, Any] = NO_KEYWORDS,
    ):
        """Args:
          sources: rows as ``arrange`` gives them. Columns that all of them have, with values of one
            type, become ``extras``.

        Raises ``UserError`` for a prompt that is too long, a column that rljax uses itself, and if
        nothing is left of a source.
        """
        report = Report(limits)
        ids: list[list[int]] = []
        kept: list[Rows] = []
        for source in sources:
            prompts = encode_prompts(source, tokenizer, chat_template)
            over = report.over(source, [len(prompt) for prompt in prompts], "prompt")
            at = left(source, ~over if limits.overlong == "drop" else np.full(len(over), True))
            ids += [cropped(prompts[i], limits.max_prompt_tokens) for i in at]
            kept.append(rows_at(source, at))
        lengths = np.array([len(prompt) for prompt in ids])
        width = limits.max_prompt_tokens or int(lengths.max())
        self.tokens = pad(ids, width, tokenizer.pad_token_id, left=True)
        self.mask = np.arange(width) >= width - lengths[:, None]
        self.rows = [row for source in kept for row in source.rows]
        self.parts = parts([len(source.rows) for source in kept])
        self.name = names(sources)
        self.note = report.note(len(self.rows), "prompts")
        columns = {name: column(kept, name, tokenizer) for name in _columns(kept)}
        self.extras = {name: values for name, values in columns.items() if values is not None}
        self.extras[ROW] = np.arange(len(self.rows), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """A hash of the prompts and of what the rewards read, in their order."""
        return fingerprint_of(self.tokens, self.mask, *self.extras.values())

    def take(self, items: Several[int] | np.ndarray) -> Prompts:
        index = np.asarray(items)
        extras = {name: values[index] for name, values in self.extras.items()}
        return Prompts(tokens=self.tokens[index], mask=self.mask[index], extras=extras)


def demonstration_table(
    sources: list[Rows],
    tokenizer,
    limits: Limits,
    chat_template: Mapping[str, Any] = NO_KEYWORDS,
    *,
    eos_ids: Collection[int] | None = None,
) -> SequenceTable:
    """Prompts with completions, and conversations. Learned are the completions, or the turns of the
    assistant's, EOS included, by the weights of their rows and messages.

    Args:
      sources: rows as ``arrange`` gives them.
      eos_ids: tokens that end an answer in the chat template; by default the tokenizer's EOS.

    Raises ``UserError`` for a row that is too long, or that the tokenizer or its chat template does
    not take, and if nothing is left of a source.
    """

    def encode(source: Rows) -> list[list[Answered]]:
        if "messages" in source.rows[0]:
            return [[x] for x in encode_conversations(source, tokenizer, chat_template, eos_ids)]
        return encode_answers(source, ["completion"], tokenizer, chat_template, eos_ids)

    kept = _kept(sources, encode, limits, "demonstrations")
    return _table(kept, tokenizer)


def pair_table(
    sources: list[Rows],
    tokenizer,
    limits: Limits,
    chat_template: Mapping[str, Any] = NO_KEYWORDS,
    *,
    eos_ids: Collection[int] | None = None,
) -> SequenceTable:
    """Prompts with a chosen and a rejected response: two rows of an item, perhaps with a margin.

    Arguments and errors are those of ``demonstration_table``. A pair is as long as its longer row.
    """

    def encode(source: Rows) -> list[list[Answered]]:
        return encode_answers(source, ["chosen", "rejected"], tokenizer, chat_template, eos_ids)

    kept = _kept(sources, encode, limits, "pairs")
    margins = [row.get("margin") for row in kept.rows]
    if None in margins and any(margin is not None for margin in margins):
        raise UserError(f"{kept.name}: some sources of pairs have a margin, and others have none")
    return _table(kept, tokenizer, together=2, margin=None if None in margins else margins)


def labelled_table(
    sources: list[Rows],
    tokenizer,
    limits: Limits,
    chat_template: Mapping[str, Any] = NO_KEYWORDS,
    *,
    mismatched: bool,
    eos_ids: Collection[int] | None = None,
) -> SequenceTable:
    """Prompts with a response each, and whether it is to become more probable.

    Arguments and errors are those of ``demonstration_table``, and

    Args:
      mismatched: also put each prompt before the response to another: that of the next row whose
        prompt is another, the first after the last.
    """

    def encode(source: Rows) -> list[list[Answered]]:
        return encode_answers(source, ["completion"], tokenizer, chat_template, eos_ids)

    kept = _kept(sources, encode, limits, "labelled responses")
    others = None
    if mismatched:
        pairs = [row for (row,) in kept.answered]
        following = _next_other([row.prompt for row in pairs], kept.name)
        crossed = [
            row._replace(answer=pairs[i].answer, weights=pairs[i].weights)
            for row, i in zip(pairs, following, strict=True)
        ]
        sequences = [_sequence(row, limits.max_tokens) for row in crossed]
        others = SequenceTable(sequences, pad_id=tokenizer.pad_token_id, name=kept.name)
    labels = [row["label"] for row in kept.rows]
    kept = kept._replace(note=f"{kept.note}, {sum(labels):,} of them desirable")
    return _table(kept, tokenizer, desirable=labels, mismatched=others)


class _Kept(NamedTuple):
    """The rows of all sources that are learned from."""

    rows: list[dict[str, Any]]
    answered: list[list[Answered]]  # by row
    sequences: list[Sequence]  # those of a row adjacent
    parts: list[np.ndarray]
    name: str
    note: str


def _kept(
    sources: list[Rows],
    encode: Callable[[Rows], list[list[Answered]]],
    limits: Limits,
    kind: str,
) -> _Kept:
    report = Report(limits)
    rows: list[dict[str, Any]] = []
    answered: list[list[Answered]] = []
    sequences: list[Sequence] = []
    counts = []
    for source in sources:
        items = encode(source)
        prompts = [len(item[0].prompt) for item in items]
        over = report.over(source, prompts, "prompt")
        if limits.overlong == "truncate":
            items = [
                [x._replace(prompt=cropped(x.prompt, limits.max_prompt_tokens)) for x in item]
                for item in items
            ]
        lengths = [max(len(x.prompt) + len(x.answer) for x in item) for item in items]
        over |= report.over(source, lengths, "row", but=over)
        new = [
            [_sequence(x, limits.max_tokens, row.get("weight", 1.0)) for x in item]
            for row, item in zip(source.rows, items, strict=True)
        ]
        drop = over & (limits.overlong == "drop")
        empty = [not all(any(x.weights) for x in item) for item in new] & ~drop
        report.empty += int(empty.sum())
        at = left(source, ~(drop | empty))
        rows += [source.rows[i] for i in at]
        answered += [items[i] for i in at]
        sequences += [sequence for i in at for sequence in new[i]]
        counts.append(len(at))
    note = report.note(len(rows), kind)
    return _Kept(rows, answered, sequences, parts(counts), names(sources), note)


def _table(kept: _Kept, tokenizer, **fields) -> SequenceTable:
    return SequenceTable(
        kept.sequences,
        pad_id=tokenizer.pad_token_id,
        parts=kept.parts,
        name=kept.name,
        note=kept.note,
        **fields,
    )


def _sequence(row: Answered, max_tokens: int | None, weight: float = 1.0) -> Sequence:
    weights = [0.0] * len(row.prompt) + [weight * x for x in row.weights]
    weights[0] = 0.0
    return Sequence([*row.prompt, *row.answer][:max_tokens], weights[:max_tokens])


def _next_other(prompts: list[list[int]], name: str) -> list[int]:
    """For each row, the next one with another prompt, the first after the last."""
    count = len(prompts)
    following = [0] * count
    other = None
    for i in reversed(range(2 * count)):
        if prompts[i % count] != prompts[(i + 1) % count]:
            other = (i + 1) % count
        if other is not None:
            following[i % count] = other
    if other is None:
        raise UserError(
            f"{name}: all prompts are the same, so that none has the response to another"
        )
    return following


def _columns(sources: list[Rows]) -> list[str]:
    """The columns of the first source, the prompt aside: no other is one of all."""
    for source in sources:
        for name in source.rows[0]:
            if name in RESERVED or name.startswith(PYTHON_REWARD):
                raise UserError(f'{source.name}: a column cannot be called "{name}": rljax uses it')
    return [name for name in sources[0].rows[0] if name != "prompt"]
