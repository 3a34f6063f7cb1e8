"""What rewards in Python say of a rollout, as columns of its extras."""

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float, Int

from rljax.errors import UserError
from rljax.host.pool import Job, RewardPool
from rljax.host.rows import held_first, local, placed
from rljax.host.secrets import redact, say
from rljax.rewards.python import PythonReward
from rljax.signatures import Failure, Outcome, Response
from rljax.types import PYTHON_REWARD, ROW, Rollout

SHORT = reprlib.Repr()
SHORT.maxstring = 80  # characters of a prompt or a response in a message
LONGEST = 4000  # characters of a row or a response beneath a traceback


def make_scorer(
    rewards: Mapping[str, PythonReward],
    rows: list[dict[str, Any]],
    tokenizer,
    pool: RewardPool,
    report: Callable[[str], None] = say,
) -> Callable[[Iterable[Rollout]], list[Rollout]]:
    """The parts of a rollout -> these with a column of every reward, ``PYTHON_REWARD`` and its
    name, in their extras: float32 [B], NaN where it failed, −inf where it does not apply.

    Each process scores the rows that it holds, a row that several hold only once, and tells the
    others. A process of the pool is told of a row what the reward reads of it. What fails is
    retried as often as the reward says, then counted over all parts, and ``report`` gets one line
    for each reward.

    Args:
      rewards: by name.
      rows: of the data; ``rollout.extras[ROW]`` leads to them.

    Raises ``UserError`` if a row lacks what a reward reads; the function returned raises it if more
    than a reward's ``max_failed_share`` of the rollout fails, once standard error has the first
    failure's traceback, row and response.
    """
    for name, reward in rewards.items():
        for number, row in enumerate(rows, start=1):
            if lack := reward.check(row):
                raise UserError(f'reward "{name}": row {number} of the data: {lack}')
        pool.prepare(reward.call)

    def score(rollouts: Iterable[Rollout]) -> list[Rollout]:
        parts = [
            (rollout, _scored(rewards, rollout, rows, tokenizer, pool)) for rollout in rollouts
        ]
        told = _Told.joined([part for _, part in parts])
        values = _shared(told.values, told.mine)
        for (name, reward), column in zip(rewards.items(), values, strict=True):
            outcomes = told.outcomes[name]
            line = _describe(name, column, outcomes, told.asked, told.index)
            if np.isnan(column).sum() > reward.max_failed_share * len(column):
                for i in _failed(outcomes)[:1]:
                    say(_evidence(name, outcomes[i], told.asked[i], int(told.index[i])))
                raise UserError(f"{line}; more than max_failed_share={reward.max_failed_share:g}")
            if line:
                report(line)
        ends = np.cumsum([len(part.mine) for _, part in parts])
        scored = []
        for (rollout, _), columns in zip(parts, np.split(values, ends[:-1], axis=1), strict=True):
            added = {
                PYTHON_REWARD + name: placed(column, rollout.truncated)
                for name, column in zip(rewards, columns, strict=True)
            }
            scored.append(rollout.replace(extras=rollout.extras | added))
        return scored

    return score


class _Told(NamedTuple):
    """What the rewards say of the rows of a rollout that this process is to ask about."""

    values: Float[np.ndarray, "R B"]  # NaN of the other rows as well
    mine: Bool[np.ndarray, " B"]
    index: Int[np.ndarray, " mine"]  # of the data
    asked: list[Response]
    outcomes: dict[str, list[Outcome]]

    @staticmethod
    def joined(parts: "list[_Told]") -> "_Told":
        return _Told(
            np.concatenate([part.values for part in parts], axis=1),
            np.concatenate([part.mine for part in parts]),
            np.concatenate([part.index for part in parts]),
            [response for part in parts for response in part.asked],
            {
                name: [outcome for part in parts for outcome in part.outcomes[name]]
                for name in parts[0].outcomes
            },
        )


def _scored(
    rewards: Mapping[str, PythonReward],
    rollout: Rollout,
    rows: list[dict[str, Any]],
    tokenizer,
    pool: RewardPool,
) -> _Told:
    mine = held_first(rollout.tokens)
    at = np.flatnonzero(mine)
    index = local(rollout.extras[ROW])[at]
    if (index < 0).any():
        raise ValueError("rewards in Python need the data row of every response")
    tokens, chosen = local(rollout.tokens), local(rollout.action_mask)
    ids = [tokens[i][chosen[i]].tolist() for i in at]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []
    asked = [Response(rows[r], text, kept) for r, text, kept in zip(index, texts, ids, strict=True)]
    outcomes = _ask(rewards, asked, pool)
    values = np.full((len(rewards), len(mine)), np.nan, np.float32)
    values[:, at] = [[_value(outcome) for outcome in outcomes[name]] for name in rewards]
    return _Told(values, mine, index, asked, outcomes)


def _ask(
    rewards: Mapping[str, PythonReward],
    asked: list[Response],
    pool: RewardPool,
) -> dict[str, list[Outcome]]:
    """Every reward's outcome for every response, after its retries."""
    outcomes: dict[str, list[Outcome]] = {
        name: [Failure("not asked")] * len(asked) for name in rewards
    }
    for tries in range(1 + max((reward.retries for reward in rewards.values()), default=0)):
        parts, jobs = [], []
        for name, reward in rewards.items():
            failed = _failed(outcomes[name])
            if tries > reward.retries or not failed:
                continue
            for part in [failed] if reward.batched else [[i] for i in failed]:
                parts.append((name, part))
                told = [asked[i]._replace(row=reward.call.reads(asked[i].row)) for i in part]
                jobs.append(Job(reward.call, told, reward.timeout_seconds, reward.memory_gib))
        for (name, part), values in zip(parts, pool.run(jobs), strict=True):
            for i, value in zip(part, values, strict=True):
                outcomes[name][i] = value
    return outcomes


def _failed(outcomes: list[Outcome]) -> list[int]:
    return [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Failure)]


def _value(outcome: Outcome) -> float:
    if isinstance(outcome, Failure):
        return np.nan
    return -np.inf if outcome is None else outcome


def _describe(
    name: str,
    column: Float[np.ndarray, " B"],
    outcomes: list[Outcome],
    asked: list[Response],
    index: np.ndarray,
) -> str:
    """How many responses failed, and the first of them that this process holds."""
    count = int(np.isnan(column).sum())
    if not count:
        return ""
    line = f'reward "{name}" failed for {count} of {len(column)} responses'
    failed = _failed(outcomes)
    if not failed:
        return f"{line}, all of them of other processes"
    first = failed[0]
    prompt = asked[first].row["prompt"]
    prompt = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    # Redacted first: a secret cut short is not found.
    short = [SHORT.repr(redact(text)) for text in (prompt, asked[first].text)]
    return (
        f"{line}; the first: {outcomes[first]}, on row {index[first] + 1} of the data, prompt "
        f"{short[0]}, response {short[1]}"
    )


def _evidence(name: str, failure: Failure, asked: Response, row: int) -> str:
    """What somebody needs to see a failure again: where it came from, the row and the response."""
    given = [
        f"{what}: {_shortened(json.dumps(value, ensure_ascii=False, default=str))}"
        for what, value in (("row", asked.row), ("response", asked.text))
    ]
    first = f'reward "{name}", row {row + 1} of the data:'
    return "\n".join([first, failure.traceback.rstrip() or failure.reason, *given])


def _shortened(text: str) -> str:
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode()  # lone surrogates


def _shared(
    values: Float[np.ndarray, "R B"], mine: Bool[np.ndarray, " B"]
) -> Float[np.ndarray, "R B"]:
    """Values of all rows, each from the process that scored it."""
    if jax.process_count() == 1:
        return values
    everyone, owns = multihost_utils.process_allgather((values, mine))  # [processes, ...]
    return np.take_along_axis(everyone, owns.argmax(axis=0)[None, None], axis=0)[0]
