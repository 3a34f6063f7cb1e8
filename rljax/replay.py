"""Responses that somebody has, as the rollouts that sampling them would have given."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rljax.data import Limits, PromptTable, Responses, Rows, arrange, column, encode_answers, pad
from rljax.errors import UserError
from rljax.types import Rollout


class Encoded(NamedTuple):
    """Responses as tokens, behind their prompts."""

    table: PromptTable
    answers: list[list[int]]
    truncated: np.ndarray
    greedy: np.ndarray  # a yardstick beside others, and no part of the figures
    group: np.ndarray


def encode(
    responses: Responses,
    tokenizer,
    *,
    columns: Mapping[str, str],
    chat_template: Mapping[str, Any],
    eos_ids: Collection[int],
) -> tuple[Encoded, list[str]]:
    """Responses as training would have them, EOS at the end of each that was not cut off; and why
    some columns are kept from compiled rewards. Those in Python read any.

    Args:
      columns, chat_template: as of ``data`` in a config.
      eos_ids: what ends a response.

    Raises ``UserError`` for what the tokenizer or its chat template does not take.
    """
    rows, _ = arrange(responses.rows, "prompts", columns)
    told = [
        {"prompt": row["prompt"], "response": text}
        for row, text in zip(rows.rows, responses.texts, strict=True)
    ]
    answered = encode_answers(
        Rows(told, rows.name, rows.lines, rows.places),
        ["response"],
        tokenizer,
        chat_template,
        eos_ids,
    )
    fitting, notes = _fitting(rows, tokenizer)
    table = PromptTable([fitting], tokenizer, Limits(), chat_template)
    table.rows = rows.rows  # for rewards in Python
    greedy = np.array(responses.greedy)
    encoded = Encoded(
        table,
        [
            answer.answer[:-1] if cut else answer.answer
            for (answer,), cut in zip(answered, responses.truncated, strict=True)
        ],
        np.array(responses.truncated),
        greedy & ~greedy.all(),
        np.array(responses.groups()),
    )
    return encoded, notes


def _fitting(rows: Rows, tokenizer) -> tuple[Rows, list[str]]:
    """Rows with the columns that are of one type, and what is wrong with the others."""
    wrong, notes = set(), []
    for name in rows.rows[0]:
        try:
            column([rows], name, tokenizer)
        except UserError as fault:
            wrong.add(name)
            notes.append(f"left out: {fault}")
    fitting = [{n: x for n, x in row.items() if n not in wrong} for row in rows.rows]
    return rows._replace(rows=fitting), notes


def batches(encoded: Encoded, batch_tokens: int) -> Iterator[tuple[np.ndarray, int]]:
    """The rows of each batch, those of a group together, and the rows that it is filled up to."""
    columns = encoded.table.tokens.shape[1] + max(map(len, encoded.answers))
    order = np.argsort(encoded.group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(encoded.group[order])) + 1)
    size = max(*map(len, groups), min(len(order), batch_tokens // columns), 1)
    start = end = 0  # of a batch, in the order
    for group in groups:
        if end + len(group) - start > size:
            yield order[start:end], size
            start = end
        end += len(group)
    yield order[start:], size


def rollout_of(encoded: Encoded, at: np.ndarray, pad_id: int) -> Rollout:
    """Some of the responses behind their prompts, as if they had been sampled."""
    prompts, width = encoded.table.take(at), max(map(len, encoded.answers))
    answers = [encoded.answers[row] for row in at]
    chosen = np.arange(width) < np.array([len(answer) for answer in answers])[:, None]
    before = np.zeros_like(prompts.mask)
    action_mask = np.concatenate([before, chosen], axis=1)
    return Rollout(
        tokens=np.concatenate([prompts.tokens, pad(answers, width, pad_id, left=False)], axis=1),
        mask=np.concatenate([prompts.mask, chosen], axis=1),
        action_mask=action_mask,
        logprobs=np.zeros(action_mask.shape, np.float32),  # of whoever sampled, unknown
        truncated=encoded.truncated[at],
        greedy=encoded.greedy[at],
        group=np.unique(encoded.group[at], return_inverse=True)[1].astype(np.int32),
        extras=prompts.extras,
    )


def filled(rollout: Rollout, size: int) -> Rollout:
    """A rollout with so many rows: the first again and again, which count for nothing."""
    filler = np.arange(size) >= len(rollout.tokens)
    at = np.where(filler, 0, np.arange(size))
    rows = jax.tree.map(lambda x: x[at], rollout)
    own_group = np.int32(rollout.group.max() + 1)
    return rows.replace(greedy=rows.greedy | filler, group=np.where(filler, own_group, rows.group))
