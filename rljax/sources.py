"""Where a run's rows come from, and what the host does with rollouts of its prompts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rljax import resolve, tasks
from rljax.config import Config, Source
from rljax.errors import UserError
from rljax.host.between import Between, in_turn, row_of
from rljax.host.data import PromptTable, read_jsonl
from rljax.host.pool import RewardPool
from rljax.host.python_rewards import make_scorer
from rljax.host.retokenize import make_retokenizer
from rljax.rewards import PythonReward
from rljax.tokens import Foreign
from rljax.types import PYTHON_REWARD, REWARD_CROPPED, REWARD_TOKENS


def read_rows(
    source: Source, config_dir: Path, context: Mapping[str, Any], where: str
) -> tuple[list[dict], str]:
    """The rows of a file or of a generating function, and a name for messages."""
    if isinstance(source, str):
        path = next((p for p in (Path(source), config_dir / source) if p.exists()), Path(source))
        return read_jsonl(path), str(path)
    rows = resolve.call(source, tasks, context=context, where=where)
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        got = "an empty one" if rows == [] else type(rows).__name__
        raise UserError(f"{where}: expected a list of rows (dicts), got {got}")
    return rows, where


def prompt_tables(
    config: Config, config_dir: Path, context: Mapping[str, Any]
) -> tuple[PromptTable, PromptTable]:
    """The prompts to train on, and those held out."""

    def table(source: Source, where: str, *, heldout: bool) -> PromptTable:
        rows, name = read_rows(source, config_dir, {**context, "heldout": heldout}, where)
        return PromptTable(
            rows,
            context["tokenizer"],
            source=name,
            max_prompt_tokens=config.data.max_prompt_tokens,
            chat_template=config.data.chat_template,
        )

    return (
        table(config.data.train, "data.train", heldout=False),
        table(config.data.eval, "data.eval", heldout=True),
    )


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
        add = make_retokenizer(prompts, tokenizer, foreign.tokenizer, max_tokens=foreign.max_tokens)
        parts.append(Between(columns, add))
    if rewards:
        columns = {PYTHON_REWARD + name: row_of(np.float32) for name in rewards}
        parts.append(Between(columns, make_scorer(rewards, table.rows, tokenizer, pool, report)))
    return in_turn(*parts)
