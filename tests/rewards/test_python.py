"""Functions with verl's and TRL's signatures as rewards, and what counts as a value of theirs."""

import importlib.util
import math
import subprocess
import sys
import typing
from types import SimpleNamespace

import numpy as np
import pytest
from builders import few
from hypothesis import given
from hypothesis import strategies as st

from rljax import resolve, rewards
from rljax.errors import UserError
from rljax.host.worker import attempt
from rljax.rewards import PythonReward, math_answer, trl_reward, verl_reward
from rljax.signatures import ABSENT, Failure, Response, Verl, find

SOURCE = """
kept = []
returned = 1.0


def verl(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    kept.append((data_source, solution_str, ground_truth, extra_info, kwargs))
    return returned


async def verl_async(solution_str, **kwargs):
    return {"score": float(len(solution_str)), "acc": True}


def trl(prompts, completions, **kwargs):
    kept.append({"prompts": prompts, "completions": completions, **kwargs})
    return returned


def trl_narrow(completions, answer):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def trl_singular(completion):
    return completion


async def trl_async(completion_ids, level=None, **kwargs):
    return [None if n == "low" else len(ids) for ids, n in zip(completion_ids, level)]


def inner():
    raise KeyError("no\\nsuch   thing")


def outer(**kwargs):
    inner()


class Unprintable(Exception):
    def __str__(self):
        raise ValueError


def unprintable(**kwargs):
    raise Unprintable


def leaves(**kwargs):
    raise SystemExit(3)


NOT_CALLABLE = 3
"""
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
VERL_ROW = {
    "prompt": CHAT,
    "data_source": "gsm8k",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 4},
}


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """The user's module, found from the working directory."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "signed.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend("")
        yield importlib.import_module("signed")


@pytest.fixture
def signed(module, monkeypatch):
    monkeypatch.setattr(module, "kept", [])
    monkeypatch.setattr(module, "returned", 1.0)
    return module


def ask(reward, *responses):
    """What a process of the pool would say."""
    told = [response._replace(row=reward.call.reads(response.row)) for response in responses]
    outcomes, failure, _ = attempt(reward.call, told)
    return outcomes if failure is None else [failure] * len(told)


def test_verls_signature(signed):
    reward = verl_reward(function="signed:verl", reward_kwargs={"strict": True})
    assert ask(reward, Response(VERL_ROW, "so 2", [5, 6])) == [1.0]
    assert signed.kept == [("gsm8k", "so 2", "2", {"index": 4}, {"strict": True})]
    assert not reward.batched


@pytest.mark.parametrize(
    ("row", "settings", "expected"),
    [
        ({"answer": "7"}, {}, (None, "x", "7", {}, {})),
        ({"answer": None}, {}, (None, "x", None, {}, {})),
        ({"answer": "7", "reward_model": {"ground_truth": "8"}}, {}, (None, "x", "8", {}, {})),
        ({"reward_model.ground_truth": "9"}, {}, (None, "x", "9", {}, {})),
        (
            {"gold": 3, "from": {"set": "a"}, "extra_info": None},
            {"ground_truth": "gold", "data_source": "from.set"},
            ("a", "x", 3, {}, {}),
        ),
        (
            {"meta": {"n": 1}},
            {"ground_truth": None, "extra_info": "meta"},
            (None, "x", None, {"n": 1}, {}),
        ),
    ],
    ids=["answer", "null answer", "both", "flat", "named", "none needed"],
)
def test_verls_columns(signed, row, settings, expected):
    reward = verl_reward(function="signed:verl", **settings)
    assert reward.check(row) is None
    assert ask(reward, Response({"prompt": "p", **row}, "x", [1])) == [1.0]
    assert signed.kept == [expected]


def test_a_row_without_ground_truth_is_named_before_anything_runs(module):
    reward = verl_reward(function="signed:verl")
    lack = reward.check({"prompt": "p", "awnser": "7", "reward_model": {"style": "rule"}})
    assert 'no column "reward_model.ground_truth" nor "answer"' in lack
    assert "awnser, prompt, reward_model" in lack


def test_coroutines_are_run_to_the_end(module):
    assert ask(verl_reward(function="signed:verl_async"), Response(VERL_ROW, "four", [1])) == [4.0]
    row = {"prompt": "p", "level": "high"}
    responses = [Response(row, "x", [1, 2]), Response(row | {"level": "low"}, "y", [1])]
    assert ask(trl_reward(function="signed:trl_async"), *responses) == [2.0, None]


@pytest.mark.parametrize(
    ("prompts", "completions"),
    [
        (["1+1=", "2+2="], ["a", "b"]),
        (
            [CHAT, CHAT],
            [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]],
        ),
    ],
    ids=["text", "chat"],
)
def test_trls_signature(signed, monkeypatch, prompts, completions):
    monkeypatch.setattr(signed, "returned", [0.5, None])
    reward = trl_reward(function="signed:trl")
    rows = [
        {"prompt": prompts[0], "answer": "2", "tags": ["x"], "completion": "2"},
        {"prompt": prompts[1], "answer": "4", "level": 1},
    ]
    asked = [Response(rows[0], "a", [7, 2]), Response(rows[1], "b", [8])]
    assert ask(reward, *asked) == [0.5, None]
    assert signed.kept == [
        {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": [[7, 2], [8]],
            "answer": ["2", "4"],
            "tags": [["x"], None],
            "level": [None, 1],
        }
    ]
    assert reward.batched


def test_a_function_without_kwargs_gets_what_it_names(module):
    reward = trl_reward(function="signed:trl_narrow")
    row = {"prompt": "1+1=", "answer": "2", "other": 3}
    assert ask(reward, Response(row, "2", [7]), Response(row, "3", [8])) == [1.0, 0.0]
    assert reward.check(row) is None
    lack = reward.check({"prompt": "1+1=", "answers": "2"})
    assert 'no column "answer", which signed:trl_narrow needs; did you mean "answers"?' in lack
    assert trl_reward(function="signed:trl_async").check({"prompt": ""}) is None  # has a default
    singular = trl_reward(function="signed:trl_singular").check({"prompt": "", "completion": ""})
    assert 'did you mean "completions"?' in singular


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (True, 1.0),
        (np.bool_(False), 0.0),
        (3, 3.0),
        (np.float32(0.5), 0.5),
        (np.array(0.25), 0.25),
        ({"score": -1}, -1.0),
        (3e38, 3e38),
    ],
)
def test_values(signed, monkeypatch, returned, expected):
    monkeypatch.setattr(signed, "returned", returned)
    (value,) = ask(verl_reward(function="signed:verl"), Response(VERL_ROW, "x", [1]))
    assert (value, type(value)) == (expected, float)


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (None, "TypeError: returned None, not a number"),
        ("1", "TypeError: returned '1', not a number"),
        (b"1", "TypeError: returned b'1', not a number"),
        ([1.0], "TypeError: returned [1.0], not a number"),
        (1j, "TypeError: returned 1j, not a number"),
        ({"acc": 1}, "ValueError: returned a dict without \"score\": {'acc': 1}"),
        ({"score": None}, "TypeError: returned None, not a number"),
        (math.nan, "ValueError: returned nan, which is not finite in 32 bits"),
        (-math.inf, "ValueError: returned -inf, which is not finite in 32 bits"),
        (1e39, "ValueError: returned 1e+39, which is not finite in 32 bits"),
        (10**400, "which is not finite in 32 bits"),
    ],
)
def test_verl_3290_a_failed_reward_silently_scored_0(signed, monkeypatch, returned, reason):
    """None of these is a number, and none may pass for 0."""
    monkeypatch.setattr(signed, "returned", returned)
    (value,) = ask(verl_reward(function="signed:verl"), Response(VERL_ROW, "x", [1]))
    assert isinstance(value, Failure)
    assert reason in value.reason


@given(st.lists(st.none() | st.floats(width=32) | st.text(max_size=3), min_size=1, max_size=6))
@few
def test_trls_values_stand_or_fail_one_by_one(module, values):
    module.returned = values
    responses = [Response({"prompt": "p"}, "x", [1])] * len(values)
    outcomes = ask(trl_reward(function="signed:trl"), *responses)
    for value, outcome in zip(values, outcomes, strict=True):
        if value is None or (isinstance(value, float) and math.isfinite(value)):
            assert outcome == value
        else:
            assert isinstance(outcome, Failure)


@pytest.mark.parametrize("kind", [tuple, np.array, iter])
def test_trl_may_return_any_sequence(signed, monkeypatch, kind):
    monkeypatch.setattr(signed, "returned", kind([0.5, 1.0]))
    two = [Response({"prompt": "p"}, "x", [1])] * 2
    assert attempt_here(trl_reward(function="signed:trl"), two) == [0.5, 1.0]


def attempt_here(reward, responses):
    return [float(value) for value in reward.call(responses)]


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ([1.0], "ValueError: returned 1 values for 2 responses"),
        ([1.0] * 3, "ValueError: returned 3 values for 2 responses"),
        (0.5, "TypeError: returned 0.5, not a list of numbers"),
        (None, "TypeError: returned None, not a list of numbers"),
        ("12", "TypeError: returned '12', not a list of numbers"),
        ({0: 1.0, 1: 1.0}, "TypeError: returned {0: 1.0, 1: 1.0}, not a list of numbers"),
    ],
)
def test_another_count_fails_for_all(signed, monkeypatch, returned, reason):
    monkeypatch.setattr(signed, "returned", returned)
    two = [Response({"prompt": "p"}, "x", [1])] * 2
    assert ask(trl_reward(function="signed:trl"), *two) == [Failure(reason)] * 2


def test_a_failure_names_the_users_own_lines(module):
    lines = [line.strip() for line in SOURCE.split("\n")]
    raised, called = lines.index("def inner():") + 2, lines.index("inner()") + 1
    (failure,) = ask(verl_reward(function="signed:outer"), Response(VERL_ROW, "x", [1]))
    assert failure.reason == "KeyError: 'no\\nsuch thing'"
    assert failure.frames == (f"signed.py:{called} in outer", f"signed.py:{raised} in inner")
    assert str(failure).endswith(f"(at signed.py:{called} in outer, signed.py:{raised} in inner)")


@pytest.mark.parametrize("name", ["unprintable", "leaves"])
def test_whatever_is_raised_is_a_failure(module, name):
    (failure,) = ask(verl_reward(function=f"signed:{name}"), Response(VERL_ROW, "x", [1]))
    assert failure.frames[0].endswith(f"in {name}")


@pytest.mark.parametrize("make", [verl_reward, trl_reward])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("signed:ferl", 'no function "ferl" in signed; did you mean "verl"'),
        ("signed:NOT_CALLABLE", 'no function "NOT_CALLABLE" in signed'),
        ("unsigned:verl", 'cannot import "unsigned"'),
        ("verl", 'expected my_module:my_function, got "verl"'),
    ],
)
def test_a_function_that_is_not_there_is_refused_at_once(module, make, function, message):
    with pytest.raises(UserError) as error:
        make(function=function)
    assert str(error.value).startswith(f"{make.__name__}: function: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout_seconds": 0},
        {"timeout_seconds": math.nan},
        {"memory_gib": 0},
        {"memory_gib": -1.0},
        {"memory_gib": math.nan},
        {"memory_gib": math.inf},
        {"retries": -1},
        {"max_failed_share": 1.1},
        {"max_failed_share": -0.1},
        {"on_failure": math.nan},
    ],
)
def test_limits_that_cannot_be_kept_are_refused(module, settings):
    makers = (
        lambda: verl_reward(function="signed:verl", **settings),
        lambda: trl_reward(function="signed:trl", **settings),
        lambda: math_answer(**settings),
    )
    for make in makers:
        with pytest.raises(UserError, match=rf"\w+: {next(iter(settings))} "):
            make()


def test_limits_arrive_under_their_names(module):
    settings = {
        "timeout_seconds": 3.0,
        "memory_gib": 0.5,
        "retries": 2,
        "on_failure": -1.0,
        "max_failed_share": 0.25,
    }
    for reward in (
        verl_reward(function="signed:verl", **settings),
        trl_reward(function="signed:trl", **settings),
        math_answer(**settings),
    ):
        assert settings.items() <= reward._asdict().items()


@pytest.mark.parametrize("given", ["leave_out", 0, -0.5])
def test_from_a_config(module, given):
    node = {"fn": "verl_reward", "function": "signed:verl", "on_failure": given, "retries": 1}
    reward = resolve.call(node, rewards, context={}, where="rewards.mine")
    assert isinstance(reward, PythonReward)
    assert reward.on_failure == given


@pytest.mark.parametrize("maker", [verl_reward, trl_reward, math_answer])
def test_makers_say_what_they_make(maker):
    """By this a config's reward in Python is told from one that is compiled."""
    assert typing.get_type_hints(maker)["return"] is PythonReward


def test_a_function_that_a_process_cannot_import_is_a_failure():
    call = Verl("nowhere_to_be_found:f", {}, "d", "g", "e")
    failure = attempt(call, [Response(VERL_ROW, "x", [1])]).failure
    assert "No module named 'nowhere_to_be_found'" in failure.reason


def test_processes_for_rewards_import_neither_jax_nor_numpy():
    code = "import sys, rljax.host.pool; print({'jax', 'numpy', 'rljax.types'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_a_path_through_something_else_than_columns():
    assert find({"a": "text"}, "a.b") is ABSENT
    assert find({"a": {"b": None}}, "a.b") is None


@pytest.mark.parametrize(
    ("answer", "response", "expected"),
    [
        ("1/2", r"so it is $\frac{1}{2}$", 1.0),
        (r"\frac{1}{2}", "The answer is 0.5", 1.0),
        (r"$\frac{3}{4}$", r"\boxed{0.75}", 1.0),
        (r"\boxed{\sqrt{2}}", r"$2^{1/2}$", 1.0),
        ("x^2+1", "$1+x^2$", 1.0),
        (42, "6*7=42", 1.0),
        ("In \\boxed{3} days 24 a day: 24*3=<<24*3=72>>72\n#### 72", r"\boxed{72}", 1.0),
        ("1,234", "answer: 1234", 1.0),
        ("1/2", r"$\frac{1}{3}$", 0.0),
        ("42", "first 42, then 43", 0.0),
        ("42", "I do not know", 0.0),
        ("42", "", 0.0),
        ("1/2", r"\boxed{\frac{1}{", 0.0),
    ],
)
def test_math_answers(answer, response, expected):
    asked = Response({"prompt": "p", "answer": answer}, response, [1])
    assert ask(math_answer(), asked) == [expected]


def test_a_row_whose_own_answer_cannot_be_read_is_a_failure():
    (outcome,) = ask(math_answer(column="gold.is"), Response({"gold": {"is": ""}}, "5", [1]))
    assert outcome.reason == "ValueError: cannot read the row's own answer, ''"
    assert 'no column "gold.is"' in math_answer(column="gold.is").check({"gold": "5"})


def test_without_math_verify_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib, "util", SimpleNamespace(find_spec=lambda name: None))
    with pytest.raises(UserError, match=r'pip install "rljax\[math\]"'):
        math_answer()
