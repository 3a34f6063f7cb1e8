"""From nodes to functions: names, types, what the run fills in, and the user's own modules."""

import sys
import types
from collections.abc import Callable

import jaxtyping
import pytest

from rljax import resolve, shaping
from rljax.errors import UserError


def ramp(start: float, *, steps: int = 10, kind: str | None = None) -> tuple:
    return ("ramp", start, steps, kind)


def stage(weight: float | Callable, tokenizer, *, max_tokens: int = 80) -> tuple:
    return ("stage", weight, tokenizer, max_tokens)


def reward(rollout, *, column: str = "answer", scale: float = 1.0):
    return rollout, column, scale


def hidden() -> None: ...


BUILTINS = types.ModuleType("builtins_of_a_test")
BUILTINS.__all__ = ["ramp", "reward", "stage"]
for _fn in (ramp, reward, stage, hidden):
    setattr(BUILTINS, _fn.__name__, _fn)
CONTEXT = {"tokenizer": "TOKENIZER", "max_tokens": 40, "start": 0.25}


def call(node):
    return resolve.call(node, BUILTINS, context=CONTEXT, where="shaping.x")


def test_a_name_alone_and_a_node_with_keywords():
    assert call("ramp") == ("ramp", 0.25, 10, None)
    assert call({"fn": "ramp", "start": 1.5, "steps": 3}) == ("ramp", 1.5, 3, None)


def test_context_fills_what_has_no_default_and_only_that():
    assert call({"fn": "stage", "weight": 0.5}) == ("stage", 0.5, "TOKENIZER", 80)
    assert call({"fn": "stage", "weight": 0.5, "tokenizer": "MINE"})[2] == "MINE"


def test_values_take_the_type_of_their_keyword():
    result = call({"fn": "ramp", "start": "6.0e-4", "steps": 4.0})
    assert result == ("ramp", 0.0006, 4, None)
    assert isinstance(result[2], int)


def test_a_node_inside_a_node_is_called_first():
    inner = {"fn": "ramp", "start": 2, "steps": 5}
    assert call({"fn": "stage", "weight": inner})[1] == ("ramp", 2.0, 5, None)


def test_bind_leaves_what_is_positional_open():
    bound = resolve.bind({"fn": "reward", "scale": 2}, BUILTINS, context=CONTEXT, where="rewards.x")
    assert bound("ROLLOUT") == ("ROLLOUT", "answer", 2.0)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("rmap", r'shaping\.x: unknown function "rmap"; did you mean "ramp"\? '),
        ("hidden", 'unknown function "hidden"'),  # not public
        ({"fn": "ramp", "stepz": 3}, r'shaping\.x: unknown key "stepz"; did you mean "steps"\?'),
        ({"fn": "ramp", "steps": "many"}, r"shaping\.x\.steps: .*integer.*got 'many'"),
        ({"fn": "ramp", "steps": 2.5}, r"shaping\.x\.steps: .*got 2\.5"),
        ({"fn": "ramp", "start": None}, r"shaping\.x\.start: .*got None"),
        ({"fn": "stage"}, r'shaping\.x: the key "weight" is missing'),
        (
            {"fn": "stage", "weight": {"fn": "ramp", "step": 3}},
            r'shaping\.x\.weight: unknown key "step"; did you mean "steps"\?',
        ),
        ({"steps": 3}, r"expected a function's name or \{fn: name, \.\.\.\}, got \{'steps': 3\}"),
        (7, "expected a function's name"),
    ],
)
def test_a_fault_names_its_place_and_the_nearest_valid_name(node, said):
    with pytest.raises(UserError, match=said):
        call(node)


def test_every_default_written_out():
    node = {"fn": "stage", "weight": {"fn": "ramp", "start": 1}}
    assert resolve.explicit(node, BUILTINS, "x") == {
        "fn": "stage",
        "max_tokens": 80,
        "weight": {"fn": "ramp", "steps": 10, "kind": None, "start": 1},
    }


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Writes a module into the working directory; its name is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    name = f"own_{request.node.name}"

    def write(text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    sys.modules.pop(name, None)


def test_ones_own_function_from_the_working_directory(module):
    name = module("def shaping(weight: float, tokenizer):\n    return weight, tokenizer\n")
    assert call({"fn": f"{name}:shaping", "weight": 1}) == (1.0, "TOKENIZER")
    with pytest.raises(UserError, match='unknown key "wieght"; did you mean "weight"'):
        call({"fn": f"{name}:shaping", "wieght": 1})


def test_ones_own_function_that_is_not_there(module):
    name = module("LIMIT = 3\ndef shaping(): ...\n")
    with pytest.raises(UserError, match=rf'no function "shapin" in {name}; did you mean "shaping"'):
        call(f"{name}:shapin")
    with pytest.raises(UserError, match='no function "LIMIT"'):
        call(f"{name}:LIMIT")


def test_ones_own_module_that_cannot_be_imported(module):
    name = module("raise RuntimeError('no licence')\n")
    with pytest.raises(
        UserError, match=rf'shaping\.x: cannot import "{name}".*RuntimeError: no licence'
    ):
        call(f"{name}:shaping")
    with pytest.raises(UserError, match=r'cannot import "no_such_module_here"'):
        call("no_such_module_here:shaping")


def test_a_positional_argument_is_no_key_of_a_bound_function():
    node = {"fn": "reward", "rollout": 3}
    said = r'rewards\.x: unknown key "rollout"; .*\(valid: column, scale\)'
    with pytest.raises(UserError, match=said):
        resolve.bind(node, BUILTINS, context=CONTEXT, where="rewards.x")


def test_annotations_that_only_a_type_checker_sees_do_no_harm(module):
    name = module(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from somewhere import Tokenizer\n"
        "def shaping(weight: float, tokenizer: Tokenizer):\n"
        "    return weight, tokenizer\n"
    )
    assert call({"fn": f"{name}:shaping", "weight": 1}) == (1, "TOKENIZER")


def test_a_function_of_any_keywords_takes_any(module):
    name = module("def shaping(weight: float, **others):\n    return weight, others\n")
    node = {"fn": f"{name}:shaping", "weight": "2", "wieght": 3}
    assert call(node) == (2.0, {"wieght": 3})


def test_a_nested_node_must_give_what_its_keyword_takes(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for users

    def band(weight):
        node = {"fn": "length_band", "weight": weight}
        context = {"min_tokens": 1, "max_tokens": 3}
        return resolve.call(node, shaping, context=context, where="shaping.x")

    state = band({"fn": "drift", "start": 0.5, "limit": 1.0, "factor": 2.0}).init()
    assert float(state.weight.value) == 0.5
    with pytest.raises(UserError, match="such as drift, not a Transform"):
        band({"fn": "length_metrics"})
