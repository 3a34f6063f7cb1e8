"""A role's parameters from its trees: what the doctests leave open."""

from rljax.trees import overlay, role_params, select
from rljax.types import Role

TREES = {
    "base": {"layers": {"up": {"kernel": 1, "bias": 2}}, "head": 3},
    "adapters": {"layers": {"up": {"lora_a": 4}}},
    "value": {"head": 5},
    "other": {"head": 6},
}


def test_of_a_roles_trees_the_later_is_laid_over_the_earlier():
    adapted = {"up": {"kernel": 1, "bias": 2, "lora_a": 4}}
    role = Role(None, ("base", "adapters", "value"))
    assert role_params(role, TREES) == {"layers": adapted, "head": 5}
    assert role_params(Role(None, ("value", "other", "base")), TREES)["head"] == 3
    assert role_params(Role(None, ("value",)), TREES) == {"head": 5}


def test_the_trees_stay_as_they_are():
    before = repr(TREES)
    role_params(Role(None, tuple(TREES)), TREES)["layers"]["up"]["kernel"] = 7
    assert repr(TREES) == before


def test_what_is_laid_over_something_of_another_kind_takes_its_place():
    assert overlay({"a": {"b": 1}}, {"a": 2}) == {"a": 2}
    assert overlay({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}


def test_nothing_selected_leaves_no_empty_branches():
    assert select(TREES, lambda path: path == ("value", "head")) == {"value": {"head": 5}}
    assert select(TREES, lambda path: False) == {}
