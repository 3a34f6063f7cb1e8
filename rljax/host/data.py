"""From rows of text to batches of tokens.

A batch is a pure function of its index: ``batches[step]`` is the same whenever and wherever it is
asked for, so that the step counter of a TrainState is the whole data position.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grain
import numpy as np

from rljax.errors import UserError
from rljax.types import PYTHON_REWARD, REWARD_CROPPED, REWARD_TOKENS, ROW, Experience, Prompts

NO_TOKEN = -1  # pads text columns: no vocabulary has it
RESERVED = frozenset({ROW, REWARD_TOKENS, REWARD_CROPPED})
ENDLESS = 2**40  # epochs; mixing data sets needs a length that fits a machine word


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file with one JSON object per line. Faults are named by file and line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"cannot read the data file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, got {line[:40]}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def encode_prompts(
    rows: Iterable[dict], tokenizer, source: str, chat_template: Mapping[str, Any]
) -> list[list[int]]:
    """The token ids of every row's ``prompt``.

    Text is taken as it is, behind the BOS token if the tokenizer begins with one. Chat messages
    ([{"role": …, "content": …}, …]) go through the tokenizer's chat template, up to where the
    assistant answers; ``chat_template`` holds further keywords of it.
    """
    rows = list(rows)
    if not any(isinstance(row.get("prompt"), list) for row in rows):
        if chat_template:
            raise UserError(f"data.chat_template: the prompts of {source} are text, no messages")
        first = tokenizer("")["input_ids"][:1]
        bos = first if first == [tokenizer.bos_token_id] else []
        return [bos + ids for ids in encode_text(rows, "prompt", tokenizer, source)]
    if tokenizer.chat_template is None:
        raise UserError(
            f"{source}: prompts are chat messages, but the tokenizer has no chat template; put a "
            "chat_template.jinja into its folder, or give prompts as text"
        )
    encoded = []
    for number, row in enumerate(rows, start=1):
        if not _is_chat(row.get("prompt")):
            raise UserError(
                f"{source}: row {number}: expected chat messages, each with a role and a content, "
                f"got {row.get('prompt')!r}"
            )
        try:
            text = tokenizer.apply_chat_template(
                row["prompt"], tokenize=False, add_generation_prompt=True, **chat_template
            )
        except Exception as error:  # a template is a program, and raises what it likes
            raise UserError(
                f"{source}: row {number}: the chat template does not take this prompt: {error}"
            ) from error
        encoded.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        _refuse_unknown(encoded[-1], text, tokenizer, f'{source}: row {number}: "prompt"')
    return encoded


def _is_chat(prompt: Any) -> bool:
    def is_turn(turn: Any) -> bool:
        return isinstance(turn, dict) and all(
            isinstance(turn.get(key), str) for key in ("role", "content")
        )

    return isinstance(prompt, list) and len(prompt) > 0 and all(map(is_turn, prompt))


def encode_text(rows: Iterable[dict], column: str, tokenizer, source: str) -> list[list[int]]:
    """The token ids of a text column of every row, without special tokens."""
    texts = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(column), str) or not row[column]:
            raise UserError(
                f'{source}: row {number}: expected text in "{column}", got {row.get(column)!r}'
            )
        texts.append(row[column])
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    for number, (text, ids) in enumerate(zip(texts, encoded, strict=True), start=1):
        _refuse_unknown(ids, text, tokenizer, f'{source}: row {number}: "{column}"')
    return encoded


def _refuse_unknown(ids: list[int], text: str, tokenizer, where: str) -> None:
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise UserError(f"{where} has characters that the tokenizer does not know: {text!r}")


def pad(sequences: Sequence[Sequence[int]], width: int, value: int, *, left: bool) -> np.ndarray:
    """An int32 array [rows, width] of sequences no longer than that."""
    array = np.full((len(sequences), width), value, np.int32)
    for row, sequence in zip(array, sequences, strict=True):
        if len(sequence):
            row[-len(sequence) if left else 0 : None if left else len(sequence)] = sequence
    return array


class PromptTable:
    """Prompts and the columns beside them, as arrays over all rows."""

    def __init__(
        self,
        rows: list[dict],
        tokenizer,
        *,
        source: str,
        max_prompt_tokens: int,
        chat_template: Mapping[str, Any] = MappingProxyType({}),
    ):
        """Raises ``UserError`` for a row without a prompt, or with one that is too long."""
        ids = encode_prompts(rows, tokenizer, source, chat_template)
        lengths = np.array([len(prompt) for prompt in ids])
        if (over := lengths > max_prompt_tokens).any():
            first = int(np.argmax(over))
            raise UserError(
                f"{source}: row {first + 1}: the prompt has {lengths[first]} tokens, more than "
                f"data.max_prompt_tokens={max_prompt_tokens}; so have {over.sum()} of {len(ids)} "
                f"rows, and the longest has {lengths.max()}"
            )
        self.tokens = pad(ids, max_prompt_tokens, tokenizer.pad_token_id, left=True)
        self.mask = np.arange(max_prompt_tokens) >= max_prompt_tokens - lengths[:, None]
        names = [name for name in rows[0] if name != "prompt"]
        for name in names:
            if name in RESERVED or name.startswith(PYTHON_REWARD):
                raise UserError(f'{source}: a column cannot be called "{name}": rljax uses it')
        columns = {name: _column(rows, name, tokenizer, source) for name in names}
        self.extras = {name: values for name, values in columns.items() if values is not None}
        self.extras[ROW] = np.arange(len(rows), dtype=np.int32)
        self.rows = rows

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Sequence[int]) -> Prompts:
        index = np.asarray(rows)
        extras = {name: column[index] for name, column in self.extras.items()}
        return Prompts(tokens=self.tokens[index], mask=self.mask[index], extras=extras)


def prompt_batches(table: PromptTable, *, prompts_per_step: int, seed: int):
    """Endless batches of a table's prompts, shuffled anew in every epoch: ``batches[step]``."""
    rows = grain.MapDataset.source(range(len(table))).seed(seed).shuffle().repeat()
    return rows.batch(prompts_per_step, batch_fn=table.take)


def demonstration_batches(
    rows: list[dict],
    tokenizer,
    *,
    source: str,
    batch_size: int,
    buckets: int,
    seed: int,
    chat_template: Mapping[str, Any] = MappingProxyType({}),
):
    """Endless batches of prompts with completions: ``batches[step]`` is an Experience.

    Rows are sorted by length into ``buckets`` of equal count, and a batch is drawn from one of
    them and padded to its longest, so that a step is compiled once for each bucket. The loss is
    over the completion, its EOS included.
    """
    prompts = encode_prompts(rows, tokenizer, source, chat_template)
    completions = encode_text(rows, "completion", tokenizer, source)
    completions = [[*ids, tokenizer.eos_token_id] for ids in completions]
    if len(rows) < buckets * batch_size:
        raise UserError(
            f"{source}: {len(rows)} rows are too few for {buckets} buckets of batches of "
            f"{batch_size}; at least {buckets * batch_size} are needed"
        )
    order = np.argsort([len(p) + len(c) for p, c in zip(prompts, completions, strict=True)])

    def batches_of(bucket: np.ndarray):
        width = max(len(prompts[i]) + len(completions[i]) for i in bucket)

        def collate(chosen) -> Experience:
            tokens = pad(
                [prompts[i] + completions[i] for i in chosen],
                width,
                tokenizer.pad_token_id,
                left=False,
            )
            columns = np.arange(width)
            prompt = np.array([[len(prompts[i])] for i in chosen])
            end = prompt + np.array([[len(completions[i])] for i in chosen])
            mask = columns < end
            return Experience(tokens=tokens, mask=mask, action_mask=mask & (columns >= prompt))

        shuffled = grain.MapDataset.source(bucket.tolist()).seed(seed).shuffle().repeat(ENDLESS)
        return shuffled.batch(batch_size, batch_fn=collate)

    parts = np.array_split(order, buckets)
    mixed = grain.MapDataset.mix(
        [batches_of(part) for part in parts], weights=[len(part) / len(rows) for part in parts]
    )
    mean_tokens = float(np.mean([len(ids) for ids in completions]))
    return mixed, mean_tokens


def _column(rows: list[dict], name: str, tokenizer, source: str) -> np.ndarray | None:
    """A column as an array: numbers as they are, text as tokens; None for anything else."""
    values = [row.get(name) for row in rows]
    if all(isinstance(value, str) for value in values):
        ids = tokenizer(values, add_special_tokens=False)["input_ids"]
        return pad(ids, max(map(len, ids)), NO_TOKEN, left=False)
    if all(isinstance(value, bool | int | float) for value in values):
        limit = np.iinfo(np.int32).max
        for number, value in enumerate(values, start=1):
            if isinstance(value, int) and abs(value) > limit:
                raise UserError(f'{source}: row {number}: "{name}" is {value}, beyond 32 bits')
        array = np.asarray(values)
        return array.astype({"f": np.float32, "i": np.int32, "b": np.bool_}[array.dtype.kind])
    text = [isinstance(value, str) for value in values]
    plain = [isinstance(value, str | bool | int | float) for value in values]
    if any(plain):
        kinds = list(zip(text, plain, strict=True))
        number = next(i for i, kind in enumerate(kinds, 1) if kind != kinds[0])
        raise UserError(
            f'{source}: row {number}: "{name}" is {values[number - 1]!r}, '
            "another type than in row 1"
        )
    return None
