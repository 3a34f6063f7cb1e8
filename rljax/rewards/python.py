"""Rewards written in Python: functions with verl's or TRL's signature, and math-verify.

They are not compiled. Between drawing and learning, processes of their own run them on text
(``rljax.host.python_rewards``); the compiled step finds their values in the rollout's extras.
"""

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from rljax import resolve
from rljax.errors import UserError, nearest
from rljax.signatures import (
    ABSENT,
    GROUND_TRUTH,
    Call,
    MathAnswer,
    Trl,
    Verl,
    columns,
    find,
    parameters,
)


class PythonReward(NamedTuple):
    """A function of responses as text, and what to do when it fails."""

    call: Call
    batched: bool  # called once for all responses of this process, else once for each
    timeout_seconds: float  # of one call
    memory_gib: float | None  # that one call may take
    retries: int  # of a call that failed
    on_failure: Literal["leave_out"] | float  # what a response is worth that stays without a value
    max_failed_share: float  # of a step's responses; with more of them the run stops
    check: Callable[[Mapping[str, Any]], str | None] = lambda row: None  # what a data row lacks


def verl_reward(
    *,
    function: str,
    reward_kwargs: Mapping[str, Any] = MappingProxyType({}),
    data_source: str = "data_source",
    ground_truth: str | None = GROUND_TRUTH,
    extra_info: str = "extra_info",
    timeout_seconds: float = 10.0,
    memory_gib: float | None = 4.0,
    retries: int = 0,
    on_failure: Literal["leave_out"] | float = "leave_out",
    max_failed_share: float = 0.5,
) -> PythonReward:
    """A function with verl's signature, called for each response:
    ``compute_score(data_source=, solution_str=, ground_truth=, extra_info=, **reward_kwargs)``.

    It returns a number, or a dict with one as its "score", and may be a coroutine. A response fails
    if the function raises, takes too long or too much memory, ends its process, or returns anything
    but a finite number. Each call finds the working directory, environment and import path of the
    run, whatever another has done to them.

    Args:
      function: ``my_module:compute_score``, found from the working directory.
      reward_kwargs: further keywords of it.
      data_source, extra_info: columns of the data, by default None and {} where a row has none. A
        path such as ``reward_model.style`` leads into a column.
      ground_truth: the same; by default that of verl's data, or else the column ``answer``; None
        if the function needs no ground truth.
      timeout_seconds: of one call.
      memory_gib: address space that one call may take beside what its process holds already, and
        any program that it starts; null for all there is. Kept on Linux alone.
      retries: how often a call that failed is repeated.
      on_failure: what a response that failed is worth; by default it is left out of learning.
      max_failed_share: of a step's responses; if more of them fail, the run stops.

    Raises ``UserError`` if there is no such function.
    """
    _check_function(function, "verl_reward")
    call = Verl(function, dict(reward_kwargs), data_source, ground_truth, extra_info)

    def check(row: Mapping[str, Any]) -> str | None:
        for path, usual in ((data_source, "data_source"), (extra_info, "extra_info")):
            if path != usual and find(row, path) is ABSENT:
                return f'no column "{path}"; {nearest(path, row)}'
        if call.truth(row) is not ABSENT:
            return None
        lacking = f'"{ground_truth}"' + (' nor "answer"' if ground_truth == GROUND_TRUTH else "")
        return (
            f"no column {lacking}; {nearest(str(ground_truth), row)}. Name another as "
            "ground_truth, or null if the function needs none"
        )

    reward = PythonReward(
        call, False, timeout_seconds, memory_gib, retries, on_failure, max_failed_share, check
    )
    return _checked(reward, "verl_reward")


def trl_reward(
    *,
    function: str,
    timeout_seconds: float = 60.0,
    memory_gib: float | None = 4.0,
    retries: int = 0,
    on_failure: Literal["leave_out"] | float = "leave_out",
    max_failed_share: float = 0.5,
) -> PythonReward:
    """A function with TRL's signature, called once for all responses that this process holds, or
    for those to a half of a step's prompts (``halves`` in the config), whole groups in any case:
    ``f(prompts=, completions=, completion_ids=, **columns) -> list[float | None]``.

    To prompts of chat messages the completions are messages too. A function without ``**kwargs``
    gets what it names. None says that the reward does not apply: such a response gets nothing from
    it. It may be a coroutine.

    If the call fails, all of its responses have failed, so that the run stops unless
    ``max_failed_share`` is 1. Values that are not finite fail one by one. A retry is a call for the
    responses that failed.

    Args:
      function: ``my_module:my_reward``, found from the working directory.
      timeout_seconds, memory_gib, retries, on_failure, max_failed_share: as of ``verl_reward``.

    Raises ``UserError`` if there is no such function.
    """
    _check_function(function, "trl_reward")
    needed = [name for name, is_needed in parameters(function)[0].items() if is_needed]

    def check(row: Mapping[str, Any]) -> str | None:
        known = {"prompts", "completions", "completion_ids", *columns(row)}
        lacking = [name for name in needed if name not in known]
        if not lacking:
            return None
        return f'no column "{lacking[0]}", which {function} needs; {nearest(lacking[0], known)}'

    reward = PythonReward(
        Trl(function),
        True,
        timeout_seconds,
        memory_gib,
        retries,
        on_failure,
        max_failed_share,
        check,
    )
    return _checked(reward, "trl_reward")


def math_answer(
    *,
    column: str = "answer",
    timeout_seconds: float = 10.0,
    memory_gib: float | None = 4.0,
    retries: int = 0,
    on_failure: Literal["leave_out"] | float = "leave_out",
    max_failed_share: float = 0.5,
) -> PythonReward:
    """1 if the response's answer equals the row's, as mathematics, else 0: by math-verify.

    1/2, 0.5 and LaTeX's fraction are equal. The answer of a response is in a LaTeX environment
    (``\\boxed{}``, ``$ $``) or its last number or expression; one that cannot be read is wrong. A
    row's answer is LaTeX or plain; of a whole solution, as GSM8K has it, what stands behind the
    last ``####``. One that cannot be read is a failure.

    Args:
      column: the data column with the answer, or a path such as ``reward_model.ground_truth``.
      timeout_seconds, memory_gib, retries, on_failure, max_failed_share: as of ``verl_reward``.

    Raises ``UserError`` if math-verify is not installed.

    Source: https://github.com/huggingface/Math-Verify
    """
    if importlib.util.find_spec("math_verify") is None:
        raise UserError('math_answer: it needs math-verify: pip install "rljax[math]"')

    def check(row: Mapping[str, Any]) -> str | None:
        if find(row, column) is not ABSENT:
            return None
        return f'no column "{column}"; {nearest(column, row)}'

    reward = PythonReward(
        MathAnswer(column),
        False,
        timeout_seconds,
        memory_gib,
        retries,
        on_failure,
        max_failed_share,
        check,
    )
    return _checked(reward, "math_answer")


def _check_function(name: str, where: str) -> None:
    if ":" not in name:
        raise UserError(f'{where}: function: expected my_module:my_function, got "{name}"')
    resolve.function(name, sys.modules[__name__], f"{where}: function")


def _checked(reward: PythonReward, where: str) -> PythonReward:
    """The reward, if its limits can be kept."""
    if not reward.timeout_seconds > 0:
        raise UserError(f"{where}: timeout_seconds must be positive, got {reward.timeout_seconds}")
    if reward.memory_gib is not None and not 0 < reward.memory_gib < math.inf:
        raise UserError(
            f"{where}: memory_gib must be positive, or null for no limit, got {reward.memory_gib}"
        )
    if reward.retries < 0:
        raise UserError(f"{where}: retries cannot be negative, got {reward.retries}")
    if not 0 <= reward.max_failed_share <= 1:
        raise UserError(
            f"{where}: max_failed_share must be from 0 to 1, got {reward.max_failed_share}"
        )
    if reward.on_failure != "leave_out" and not math.isfinite(reward.on_failure):
        raise UserError(f"{where}: on_failure must be finite, got {reward.on_failure}")
    return reward
