"""How verl and TRL call a reward function, and how math-verify is asked.

The calls run in processes of their own (``rljax.host.worker``), many of them, so that this imports
nothing but the standard library: no JAX, no NumPy.
"""

import asyncio
import functools
import importlib
import inspect
import logging
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

FLOAT32_MAX = 3.4028234663852886e38
MANY = 1000  # items, which no message shows
ABSENT = object()  # no column; None is a value
GROUND_TRUTH = "reward_model.ground_truth"  # where verl has it


class Response(NamedTuple):
    """What a reward in Python is asked about."""

    row: dict[str, Any]  # of the data, its prompt included
    text: str  # without special tokens
    ids: list[int]  # of the response's tokens, EOS included


class Failure(NamedTuple):
    """Why there is no value."""

    reason: str
    frames: tuple[str, ...] = ()  # where, the innermost last: "rewards.py:12 in compute_score"
    traceback: str = ""  # from the user's own code on, as Python prints it

    def __str__(self) -> str:
        return f"{self.reason} (at {', '.join(self.frames)})" if self.frames else self.reason


Outcome = float | Failure | None  # None: the reward does not apply


def find(row: Mapping[str, Any], path: str) -> Any:
    """A column by its name, or by a path such as ``reward_model.ground_truth``; else ABSENT.

    >>> find({"reward_model": {"ground_truth": "7"}}, "reward_model.ground_truth")
    '7'
    """
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return ABSENT
        value = value[part]
    return value


def part(row: Mapping[str, Any], *paths: str) -> dict[str, Any]:
    """The columns of a row that paths lead into."""
    names = [path if path in row else path.partition(".")[0] for path in paths]
    return {name: row[name] for name in names if name in row}


@functools.cache
def load(function: str) -> Callable:
    """The function of a ``module:function``."""
    module, _, attribute = function.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True)
class Verl:
    """``compute_score(data_source=, solution_str=, ground_truth=, extra_info=, **reward_kwargs)``,
    for one response: a number, or a dict with one as its "score"."""

    function: str
    reward_kwargs: dict[str, Any]
    data_source: str  # these three are columns of the data
    ground_truth: str | None
    extra_info: str

    def load(self) -> None:
        """Imports what it calls."""
        load(self.function)

    def reads(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a row that it reads."""
        truth = [] if self.ground_truth is None else [self.ground_truth]
        usual = ["answer"] if self.ground_truth == GROUND_TRUTH else []
        return part(row, self.data_source, self.extra_info, *truth, *usual)

    def __call__(self, responses: list[Response]) -> list[float]:
        (response,) = responses
        source, info = (find(response.row, path) for path in (self.data_source, self.extra_info))
        result = _to_the_end(
            load(self.function)(
                data_source=None if source is ABSENT else source,
                solution_str=response.text,
                ground_truth=self.truth(response.row),
                extra_info={} if info is ABSENT or info is None else info,
                **self.reward_kwargs,
            )
        )
        if isinstance(result, Mapping):
            if "score" not in result:
                raise ValueError(f'returned a dict without "score": {shown(result)}')
            result = result["score"]
        return [number(result)]

    def truth(self, row: Mapping[str, Any]) -> Any:
        """The ground truth of a row, or ABSENT; None if the function needs none."""
        if self.ground_truth is None:
            return None
        truth = find(row, self.ground_truth)
        if truth is ABSENT and self.ground_truth == GROUND_TRUTH:
            return row.get("answer", ABSENT)
        return truth


@dataclass(frozen=True)
class Trl:
    """``f(prompts=, completions=, completion_ids=, **columns)`` for a batch: a list of numbers, and
    of None where the reward does not apply. A function without ``**kwargs`` gets what it names."""

    function: str

    def load(self) -> None:
        load(self.function)

    def reads(self, row: Mapping[str, Any]) -> dict[str, Any]:
        names, takes_any = parameters(self.function)
        return dict(row) if takes_any else part(row, "prompt", *names)

    def __call__(self, responses: list[Response]) -> list[Any]:
        names, takes_any = parameters(self.function)
        given = self.arguments(responses)
        if not takes_any:
            given = {name: values for name, values in given.items() if name in names}
        values = _to_the_end(load(self.function)(**given))
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise TypeError(f"returned {shown(values)}, not a list of numbers")
        return list(values)

    @staticmethod
    def arguments(responses: list[Response]) -> dict[str, list]:
        """All that TRL knows of a batch, by name, a list over the responses each."""
        names = dict.fromkeys(name for response in responses for name in columns(response.row))
        return {name: [response.row.get(name) for response in responses] for name in names} | {
            "prompts": [response.row["prompt"] for response in responses],
            "completions": [_completion(response) for response in responses],
            "completion_ids": [response.ids for response in responses],
        }


def columns(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row that TRL passes on as they are."""
    return [name for name in row if name not in ("prompt", "completion", "completion_ids")]


def _completion(response: Response) -> str | list[dict[str, str]]:
    chat = isinstance(response.row["prompt"], list)
    return [{"role": "assistant", "content": response.text}] if chat else response.text


@functools.cache
def parameters(function: str) -> tuple[dict[str, bool], bool]:
    """The names that a function takes as keywords and whether it needs them, and whether it takes
    any other."""
    everything = inspect.signature(load(function)).parameters.values()
    named = {
        p.name: p.default is p.empty
        for p in everything
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    return named, any(p.kind is p.VAR_KEYWORD for p in everything)


@dataclass(frozen=True)
class MathAnswer:
    """Whether math-verify finds a response's answer equal to that of the row: 1.0 or 0.0."""

    column: str

    def load(self) -> None:
        load("math_verify:verify")

    def reads(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return part(row, self.column)

    def __call__(self, responses: list[Response]) -> list[float]:
        # Its own time limits are alarms, which a long power of integers does not hear; the pool's
        # end the process. Without them it warns.
        logging.getLogger("math_verify").setLevel(logging.ERROR)
        parse = functools.partial(load("math_verify:parse"), parsing_timeout=None)
        (response,) = responses
        given = str(find(response.row, self.column))
        answer = given.rpartition("####")[2].strip()  # of a whole solution, as GSM8K has it
        marked = "$" in answer or "\\boxed" in answer
        gold = parse(answer if marked else f"\\boxed{{{answer}}}")
        if not gold:
            raise ValueError(f"cannot read the row's own answer, {reprlib.repr(given)}")
        verify = load("math_verify:verify")
        return [float(verify(gold, parse(response.text), timeout_seconds=None))]


Call = Verl | Trl | MathAnswer  # of responses, with one value for each


def number(value: Any) -> float:
    """A number that is finite in 32 bits. Text is none, even "1"."""
    try:
        if isinstance(value, str | bytes | bytearray):
            raise TypeError
        result = float(value)
    except OverflowError:
        result = float("inf")
    except Exception:
        raise TypeError(f"returned {shown(value)}, not a number") from None
    if not abs(result) <= FLOAT32_MAX:
        raise ValueError(f"returned {shown(value)}, which is not finite in 32 bits")
    return result


def shown(value: Any) -> str:
    """A value of any kind and size in a message.

    >>> shown([1, 2]), shown([0] * 5000)
    ('[1, 2]', 'a list of 5000 items')
    """
    kind = type(value).__name__
    try:
        if isinstance(value, Sized) and not isinstance(value, str) and len(value) > MANY:
            return f"a {kind} of {len(value)} items"
        return reprlib.repr(value)
    except Exception:
        return f"a {kind} that cannot be shown"


def _to_the_end(result: Any) -> Any:
    """The result itself, or what it is once it has been awaited."""
    if not inspect.isawaitable(result):
        return result

    async def wait():
        return await result

    return asyncio.run(wait())
