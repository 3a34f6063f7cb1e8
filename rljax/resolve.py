"""From a config's node to a function, and to its arguments.

A node is ``{fn: name, keyword: value, ...}`` or just a name. The name is one of a module's public
functions, or a plug-in's (``rljax.plugins``), or ``my_module:my_function``, found from the working
directory or an installed package. The keywords are the function's own, so that nothing is declared
twice.
"""

import functools
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pydantic

from rljax import plugins
from rljax.errors import UserError, nearest, reason

Node = str | Mapping[str, Any]


def split(node: Node, where: str) -> tuple[str, dict[str, Any]]:
    """A node's function name and keywords."""
    if isinstance(node, str):
        return node, {}
    if not isinstance(node, Mapping) or not isinstance(node.get("fn"), str):
        raise UserError(f"{where}: expected a function's name or {{fn: name, ...}}, got {node!r}")
    return node["fn"], {k: v for k, v in node.items() if k != "fn"}


def function(name: str, builtins: ModuleType, where: str) -> Callable:
    """The function of a name: public in ``builtins``, or a plug-in of the group that is called as
    this module, or ``module:function`` of the user's own."""
    if ":" not in name:
        return _public(name, builtins, where)
    module_name, _, attribute = name.partition(":")
    module = users_module(module_name, name, where)
    if not callable(getattr(module, attribute, None)):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UserError(
            f'{where}: no function "{attribute}" in {module_name}; {nearest(attribute, public)}'
        )
    return getattr(module, attribute)


def users_module(module_name: str, name: str, where: str) -> ModuleType:
    """The module that ``name`` is of, from the working directory or an installed package."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f'{where}: cannot import "{module_name}" of "{name}": {reason}') from error


def _public(name: str, builtins: ModuleType, where: str) -> Callable:
    group, is_built_in = builtins.__name__, name in builtins.__all__
    try:
        plugin = plugins.find(name, group, built_in=is_built_in)
        if plugin is not None:
            return plugins.load(plugin)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if not is_built_in:
        valid = {*builtins.__all__, *(plugin.name for plugin in plugins.installed(group))}
        raise UserError(
            f'{where}: unknown function "{name}"; {nearest(name, valid)}, '
            "or your own as my_module:my_function"
        )
    return getattr(builtins, name)


def arguments(
    fn: Callable,
    given: Mapping[str, Any],
    *,
    context: Mapping[str, Any],
    where: str,
    builtins: ModuleType | None = None,
    open_positionals: int = 0,
) -> dict[str, Any]:
    """Checks ``given`` against the keywords of ``fn``, and returns them converted to its types.

    A parameter without a default that is not given is taken from ``context`` (what a run knows:
    its tokenizer, its length band, …). A value that is itself a node of ``builtins`` is called
    first. The first ``open_positionals`` parameters are no keywords.

    Raises ``UserError`` for a keyword that is unknown or missing, or a value of the wrong type.
    """
    try:
        everything = inspect.signature(fn).parameters
    except ValueError as error:
        raise UserError(f"{where}: a function written in Python is needed") from error
    takes_any = any(p.kind is p.VAR_KEYWORD for p in everything.values())
    parameters = {
        name: p
        for name, p in list(everything.items())[open_positionals:]
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    try:
        hints = typing.get_type_hints(fn)
    except Exception:  # names for type checkers alone, or no plain function
        hints = {}
    resolved = {}
    for name, value in given.items():
        open_ones = list(everything)[:open_positionals]
        if name in open_ones or (name not in parameters and not takes_any):
            raise UserError(f'{where}: unknown key "{name}"; {nearest(name, parameters)}')
        if builtins is not None and isinstance(value, Mapping) and "fn" in value:
            resolved[name] = call(value, builtins, context=context, where=f"{where}.{name}")
        else:
            resolved[name] = _convert(value, hints.get(name, Any), f"{where}.{name}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in resolved:
            if name not in context:
                raise UserError(
                    f'{where}: the key "{name}" is missing: {getattr(fn, "__name__", fn)} asks for '
                    "it, and it is nothing that a run knows by itself"
                )
            resolved[name] = context[name]
    return resolved


def call(
    node: Node,
    builtins: ModuleType,
    *,
    context: Mapping[str, Any],
    where: str,
    nested: ModuleType | None = None,
) -> Any:
    """Calls a node's function with its keywords; nodes among these are of ``nested``, by default
    of ``builtins`` too."""
    name, given = split(node, where)
    fn = function(name, builtins, where)
    kwargs = arguments(fn, given, context=context, where=where, builtins=nested or builtins)
    try:
        return fn(**kwargs)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: {name} {reason(error)}") from error


def bind(node: Node, builtins: ModuleType, *, context: Mapping[str, Any], where: str) -> Callable:
    """A node's function with its keywords bound; its first argument stays open."""
    name, given = split(node, where)
    fn = function(name, builtins, where)
    kwargs = arguments(
        fn, given, context=context, where=where, builtins=builtins, open_positionals=1
    )
    return functools.partial(fn, **kwargs)


def explicit(
    node: Node, builtins: ModuleType, where: str, nested: ModuleType | None = None
) -> dict[str, Any]:
    """The node with every default of its function written out; ``nested`` as of ``call``."""
    name, given = split(node, where)
    inner = {
        k: explicit(v, nested or builtins, f"{where}.{k}")
        if isinstance(v, Mapping) and "fn" in v
        else v
        for k, v in given.items()
    }
    return {"fn": name, **defaults(function(name, builtins, where)), **inner}


def defaults(fn: Callable) -> dict[str, Any]:
    """The keywords of a function that have a plain default, with it."""
    return {
        name: p.default
        for name, p in inspect.signature(fn).parameters.items()
        if p.kind is not p.POSITIONAL_ONLY
        and isinstance(p.default, bool | int | float | str | None)
    }


def _convert(value: Any, hint: Any, where: str) -> Any:
    try:
        adapter = pydantic.TypeAdapter(
            hint, config=pydantic.ConfigDict(arbitrary_types_allowed=True)
        )
    except pydantic.PydanticSchemaGenerationError:
        return value  # a type that pydantic does not know is the function's own business
    try:
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {error.errors()[0]['msg'].lower()}, got {value!r}") from error
