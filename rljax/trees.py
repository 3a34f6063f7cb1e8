"""Parameter trees as nested dicts: looking up, laying one over another, selecting."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from rljax.types import Params, Role

Path = tuple[str, ...]


def find(tree: Params, path: Path) -> Any:
    """The entry at a path, or None.

    >>> find({"a": {"b": 1}}, ("a", "b")), find({"a": {"b": 1}}, ("a", "c"))
    (1, None)
    """
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return None
        tree = tree[name]
    return tree


def overlay(under: Params, over: Params) -> Params:
    """Both trees as one; where both have an entry, that of ``over``.

    >>> overlay({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    if not (isinstance(under, Mapping) and isinstance(over, Mapping)):
        return over
    merged = {name: overlay(under[name], over[name]) for name in under.keys() & over.keys()}
    return {name: merged.get(name, tree) for name, tree in [*under.items(), *over.items()]}


def select(tree: Params, keep: Callable[[Path], bool], path: Path = ()) -> Params:
    """The part of a tree whose leaves' paths are to be kept.

    >>> select({"a": {"b": 1, "c": 2}, "d": {"e": 3}}, lambda path: path[-1] == "b")
    {'a': {'b': 1}}
    """
    kept = {}
    for name, entry in tree.items():
        here = (*path, name)
        if not isinstance(entry, Mapping):
            if keep(here):
                kept[name] = entry
        elif below := select(entry, keep, here):
            kept[name] = below
    return kept


def by_path(tree: PyTree) -> dict[str, Any]:
    """Every leaf by its path.

    >>> by_path({"a": {"b": 1}, "c": (2, 3)})
    {'a/b': 1, 'c/0': 2, 'c/1': 3}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {name_of(path): leaf for path, leaf in leaves}


def name_of(path: tuple[Any, ...]) -> str:
    """A path as JAX has it, in words: its keys, with slashes between them."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def role_params(role: Role, trees: Mapping[str, Params]) -> Params:
    """The parameters of a role, on the devices: its trees, each laid over the one before."""
    params: Params = {}
    for name in role.trees:
        params = overlay(params, trees[name])
    return jax.device_put(params, jax.memory.Space.Device) if role.offloaded else params
