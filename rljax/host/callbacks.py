"""The user's own functions that a run calls, as listeners."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rljax import resolve
from rljax.errors import UserError
from rljax.host.listeners import Listener

TOLD = {  # the arguments of each
    "on_step": ("step", "metrics"),
    "on_eval": ("step", "figures", "samples"),
    "on_save": ("step", "path"),
}


def make_callbacks(
    kind: str, nodes: resolve.Node | list[resolve.Node], run_dir: Path
) -> list[Listener]:
    """A listener for each function, ``my_module:my_function`` with its keywords, if any.

    Each gets copies, so that it cannot change what others see. A parameter ``run_dir`` is filled
    in. Raises ``UserError`` if there is no such function, or if it cannot be called so.
    """
    listed = nodes if isinstance(nodes, list) else [nodes]
    return [_make_callback(kind, node, run_dir) for node in listed]


def _make_callback(kind: str, node: resolve.Node, run_dir: Path) -> Listener:
    where, told = f"callbacks.{kind}", TOLD[kind]
    name, given = resolve.split(node, where)
    if ":" not in name:
        raise UserError(f'{where}: expected a function as my_module:my_function, got "{name}"')
    fn = resolve.function(name, resolve, where)
    context = {"run_dir": str(run_dir)}
    keywords = _keywords(fn, given, context, where, told)
    return Listener(f"{where} {name}", **{kind: functools.partial(_call, fn, keywords)})


def _keywords(
    fn: Callable, given: Mapping[str, Any], context: Mapping[str, Any], where: str, told: tuple
) -> dict[str, Any]:
    called = f"{getattr(fn, '__name__', fn)}({', '.join(told)})"
    if inspect.iscoroutinefunction(fn):
        raise UserError(f"{where}: {called} is async; a plain function is needed")
    try:
        inspect.signature(fn).bind_partial(*told)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: it is called as {called}, which does not fit: {error}"
        ) from error
    keywords = resolve.arguments(
        fn, given, context=context, where=where, open_positionals=len(told)
    )
    try:
        inspect.signature(fn).bind(*told, **keywords)
    except TypeError as error:
        raise UserError(
            f"{where}: it is called as {called}, which does not fit: {error}"
        ) from error
    return keywords


def _call(fn: Callable, keywords: Mapping[str, Any], step: int, *told: Any) -> None:
    fn(step, *copy.deepcopy(told), **keywords)
