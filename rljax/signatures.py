"""How verl and TRL call a reward function, and how math-verify is asked.

This runs in processes of its own (``rljax.host.pool``), many of them, so it imports nothing but
the standard library: no JAX, no NumPy.
"""

import asyncio
import functools
import importlib
import inspect
import logging
import os
import pickle
import reprlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

FLOAT32_MAX = 3.4028234663852886e38
LAST_FRAMES = 3
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

    def __str__(self) -> str:
        return f"{self.reason} (at {', '.join(self.frames)})" if self.frames else self.reason


Outcome = float | Failure | None  # None: the reward does not apply
Call = Callable[[list[Response]], Sequence[Any]]  # one value for each response


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

    def __setstate__(self, state):
        self.__dict__.update(state)
        load(self.function)  # on arrival, so that the import takes no time from the first call

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
                raise ValueError(f'returned a dict without "score": {reprlib.repr(result)}')
            result = result["score"]
        return [_number(result)]

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

    def __setstate__(self, state):
        self.__dict__.update(state)
        load(self.function)

    def __call__(self, responses: list[Response]) -> list[Any]:
        names, takes_any = parameters(self.function)
        given = self.arguments(responses)
        if not takes_any:
            given = {name: values for name, values in given.items() if name in names}
        values = _to_the_end(load(self.function)(**given))
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise TypeError(f"returned {reprlib.repr(values)}, not a list of numbers")
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

    def __setstate__(self, state):
        self.__dict__.update(state)
        load("math_verify:verify")

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


def attempt(call: bytes, responses: bytes) -> list[Outcome]:
    """What a pickled call says of pickled responses. It never raises, and what it returns is plain:
    an exception of the user's own may not survive the way between two processes."""
    count = 1
    try:
        asked: list[Response] = pickle.loads(responses)
        count = len(asked)
        values = unpickled(call)(asked)
        if len(values) != count:
            raise ValueError(f"returned {len(values)} values for {count} responses")
    except BaseException as error:  # SystemExit as well
        return [_failure(error)] * count
    return [_checked(value) for value in values]


unpickled: Callable[[bytes], Call] = functools.cache(pickle.loads)


def _to_the_end(result: Any) -> Any:
    """The result itself, or what it is once it has been awaited."""
    if not inspect.isawaitable(result):
        return result

    async def wait():
        return await result

    return asyncio.run(wait())


def _checked(value: Any) -> Outcome:
    try:
        return None if value is None else _number(value)
    except Exception as error:
        return _failure(error)


def _number(value: Any) -> float:
    """A number that is finite in 32 bits. Text is none, even "1"."""
    wrong = TypeError(f"returned {reprlib.repr(value)}, not a number")
    if isinstance(value, str | bytes | bytearray):
        raise wrong
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    except Exception:
        raise wrong from None
    if not abs(number) <= FLOAT32_MAX:
        raise ValueError(f"returned {reprlib.repr(value)}, which is not finite in 32 bits")
    return number


def _failure(error: BaseException) -> Failure:
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    frames = traceback.extract_tb(error.__traceback__)
    ours = [i for i, frame in enumerate(frames) if frame.filename == __file__]
    theirs = frames[ours[-1] + 1 :] if ours else frames
    places = (f"{_short(f.filename)}:{f.lineno} in {f.name}" for f in theirs[-LAST_FRAMES:])
    return Failure(text, tuple(places))


def _short(path: str) -> str:
    here = os.getcwd() + os.sep
    return path.removeprefix(here) if path.startswith(here) else path
