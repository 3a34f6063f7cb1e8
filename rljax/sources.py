"""Where a run's rows come from, and what the host does with rollouts of its prompts."""

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic

from rljax import resolve, tasks
from rljax.config import Config, Data, Section, Source
from rljax.data import (
    Limits,
    PackedTable,
    PromptTable,
    Rows,
    SequenceTable,
    arrange,
    demonstration_table,
    labelled_table,
    offers,
    pair_table,
    read_rows,
)
from rljax.errors import UserError, nearest
from rljax.host.between import Between, in_turn, row_of
from rljax.host.pool import RewardPool
from rljax.host.python_rewards import make_scorer
from rljax.host.retokenize import make_retokenizer
from rljax.rewards import PythonReward
from rljax.tokens import Foreign
from rljax.types import PYTHON_REWARD, REWARD_CROPPED, REWARD_TOKENS, Algorithm, Layout


class SourceSettings(Section):
    """A source with settings of its own, among those that are mixed."""

    source: Source
    weight: pydantic.PositiveFloat | None = None  # its share of a batch, among the others'
    split: str = "train"
    subset: str | None = None  # of a data set on the hub
    columns: dict[str, str] | None = None  # over data.columns


class Sources(NamedTuple):
    """Rows in the columns of a layout, source by source."""

    rows: list[Rows]
    weights: list[float] | None  # None: as many as each has
    notes: list[str]  # what was read, for the log


class Tables(NamedTuple):
    """The rows of a run, as tokens: what it learns from, and what is held out."""

    train: PromptTable | SequenceTable | PackedTable
    weights: list[float] | None  # of the sources of ``train``
    prompts: PromptTable | None  # held out, to be answered and judged
    given: SequenceTable | None  # held out, whose loss is measured
    warm_start: SequenceTable | None  # demonstrations
    notes: list[str]


def read_tables(
    config: Config,
    config_dir: Path,
    context: Mapping[str, Any],
    algorithm: Algorithm,
    eos_ids: Collection[int],
) -> Tables:
    """The rows to train on, in the layout that the algorithm learns from, those held out, and the
    demonstrations of a warm start.

    Of held-out rows the prompts are answered if there are rewards to judge by, and the loss is
    measured if they are of the training's layout.
    """
    data, layout, tokenizer = config.data, algorithm.learns_from, context["tokenizer"]

    def read(node, where: str, *, heldout: bool) -> list[tuple[Rows, SourceSettings]]:
        return _read(node, config_dir, {**context, "heldout": heldout}, where, data)

    train = arranged(read(data.train, "data.train", heldout=False), layout, data)
    table = make_table(train, tokenizer, data, algorithm, eos_ids)
    prompts = given = None
    notes = [*train.notes, f"train: {table.note}"]
    if data.eval is not None:
        rows = read(data.eval, "data.eval", heldout=True)
        if config.rewards:
            held = arranged(rows, "prompts", data)
            prompts = _prompt_table(held, tokenizer, data)
            notes += [*held.notes, f"held out: {prompts.note}"]
        if layout != "prompts" and all(offers(r, layout, _columns(s, data)) for r, s in rows):
            held = arranged(rows, layout, data)
            padded = data.model_copy(update={"packing": False})
            given = make_table(held, tokenizer, padded, algorithm, eos_ids)
            notes += [*held.notes, f"held out: {given.note}"]
        if prompts is None and given is None:
            raise UserError(
                f"data.eval: its rows are no {layout}, whose loss could be measured, and there are "
                "no rewards to judge answers to its prompts by"
            )
    warm_start = None
    if config.warm_start is not None:
        rows = read(config.warm_start.data, "warm_start.data", heldout=False)
        warm_start = demonstration_table(
            arranged(rows, "demonstrations", data).rows,
            tokenizer,
            Limits(),
            data.chat_template,
            eos_ids=eos_ids,
        )
    return Tables(table, train.weights, prompts, given, warm_start, list(dict.fromkeys(notes)))


def heldout_prompts(config: Config, config_dir: Path, context: Mapping[str, Any]) -> PromptTable:
    """The prompts of ``data.eval``, which an evaluation numbers in this order."""
    context = {**context, "heldout": True}
    rows = _read(config.data.eval, config_dir, context, "data.eval", config.data)
    return _prompt_table(arranged(rows, "prompts", config.data), context["tokenizer"], config.data)


def _read(
    node: Source | list[Source],
    config_dir: Path,
    context: Mapping[str, Any],
    where: str,
    data: Data,
) -> list[tuple[Rows, SourceSettings]]:
    """The rows of one source or several: files, folders, hub ids, or generating functions."""
    read = []
    nodes = node if isinstance(node, list) else [node]
    if not nodes:
        raise UserError(f"{where}: at least one source is needed")
    for number, node in enumerate(nodes, start=1):
        here = where if len(nodes) == 1 else f"{where}, source {number}"
        settings = _settings(node, here)
        source = settings.source
        if isinstance(source, str):
            rows = read_rows(
                source, folder=config_dir, split=settings.split, subset=settings.subset
            )
        else:
            made = resolve.call(source, tasks, context=context, where=here)
            if not isinstance(made, list) or not made or not isinstance(made[0], dict):
                got = "an empty one" if made == [] else type(made).__name__
                raise UserError(f"{here}: expected a list of rows (dicts), got {got}")
            rows = Rows(made, here, None)
        read.append((rows, settings))
    return read


def _settings(node: Source, where: str) -> SourceSettings:
    if not isinstance(node, dict) or "source" not in node:
        return SourceSettings(source=node)
    for name in node:
        if name not in SourceSettings.model_fields:
            known = nearest(name, SourceSettings.model_fields)
            raise UserError(f'{where}: unknown key "{name}"; {known}')
    try:
        return SourceSettings.model_validate(node)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        place = ".".join([where, *(str(part) for part in fault["loc"][:1])])
        raise UserError(f"{place}: {fault['msg'].lower()}, got {fault['input']!r}") from error


def _columns(settings: SourceSettings, data: Data) -> dict[str, str]:
    return {**data.columns, **(settings.columns or {})}


def arranged(read: list[tuple[Rows, SourceSettings]], layout: Layout, data: Data) -> Sources:
    """Sources in the columns of a layout."""
    rows, notes = [], []
    for found, settings in read:
        arranged_rows, said = arrange(found, layout, _columns(settings, data))
        rows.append(arranged_rows)
        notes.append(f"{found.name}: {said}")
    given = [settings.weight for _, settings in read]
    weights = None
    if any(weight is not None for weight in given):
        weights = [1.0 if weight is None else weight for weight in given]
    return Sources(rows, weights, notes)


def make_table(
    sources: Sources,
    tokenizer,
    data: Data,
    algorithm: Algorithm,
    eos_ids: Collection[int] | None = None,
) -> PromptTable | SequenceTable | PackedTable:
    """Rows as arrays, in the layout that an algorithm learns from.

    Args:
      eos_ids: what ends a response, by default the tokenizer's EOS.
    """
    if algorithm.learns_from == "prompts":
        return _prompt_table(sources, tokenizer, data)
    limits = Limits(data.max_prompt_tokens, data.max_tokens, data.overlong)
    given = (sources.rows, tokenizer, limits, data.chat_template)
    ends = {"eos_ids": eos_ids}
    if data.packing and algorithm.learns_from != "demonstrations":
        raise UserError(
            f"data.packing: only demonstrations can be packed, not {algorithm.learns_from}"
        )
    if algorithm.learns_from == "pairs":
        return pair_table(*given, **ends)
    if algorithm.learns_from == "labelled":
        compared = algorithm.baseline is not None and algorithm.baseline.mismatched
        return labelled_table(*given, mismatched=compared, **ends)
    table = demonstration_table(*given, **ends)
    if not data.packing:
        return table
    if data.max_tokens is None:
        raise UserError("data.packing: rows are filled up to data.max_tokens, which is missing")
    return PackedTable(table, data.max_tokens)


def _prompt_table(sources: Sources, tokenizer, data: Data) -> PromptTable:
    limits = Limits(max_prompt_tokens=data.max_prompt_tokens, overlong=data.overlong)
    return PromptTable(sources.rows, tokenizer, limits, data.chat_template)


def make_between(
    table: PromptTable,
    tokenizer,
    foreign: Foreign | None,
    rewards: Mapping[str, PythonReward],
    pool: RewardPool,
    report: Callable[[str], None],
) -> Between:
    """What the host does with rollouts of a table's prompts: writes them anew in the tokens of a
    ``foreign`` reward model, and asks the ``rewards`` that are in Python."""
    parts = []
    if foreign is not None:
        prompts = [row["prompt"] for row in table.rows]
        columns = {
            REWARD_TOKENS: row_of(np.int32, foreign.max_tokens),
            REWARD_CROPPED: row_of(np.bool_),
        }
        retokenize = make_retokenizer(
            prompts, tokenizer, foreign.tokenizer, max_tokens=foreign.max_tokens
        )
        parts.append(Between(columns, functools.partial(map, retokenize)))
    if rewards:
        columns = {PYTHON_REWARD + name: row_of(np.float32) for name in rewards}
        parts.append(Between(columns, make_scorer(rewards, table.rows, tokenizer, pool, report)))
    return in_turn(*parts)
