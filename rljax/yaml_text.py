"""YAML as configs are written in it: text, numbers, true and false, null, lists, keys with values.

Whatever else YAML can say, or says by accident, is refused: tags, a key that is there twice,
something that holds itself.
"""

import math
import re
from collections import Counter
from typing import Any

import yaml

from rljax.errors import UserError

MOST_BYTES = 2**20  # of a file; more is data that was taken for a config
MOST_LEVELS = 32
LARGEST = (2 - 2**-23) * 2.0**127  # a float32, in which everything is computed
MOST_VALUES = 10_000  # aliases counted as often as they stand for something


def read_yaml(text: str) -> Any:
    """What a YAML text says. Raises ``UserError`` if it is none, or says what no config can."""
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError("not valid YAML: too many levels") from error
    check_plain(tree)
    return tree


def check_plain(tree: Any) -> None:
    """Raises ``UserError`` for what is no tree, or holds a value of a type or a size that no
    setting has."""
    left, values = [("", 0, tree)], 0
    while left:
        path, level, value = left.pop()
        values += 1
        if level > MOST_LEVELS:
            raise UserError(f"{path[:40]}…: more than {MOST_LEVELS} levels, or it holds itself")
        if values > MOST_VALUES:
            raise UserError(f"more than {MOST_VALUES:,} values, aliases counted")
        fault = _fault(value)
        if isinstance(value, dict):
            if bad := [name for name in value if not isinstance(name, str) or _fault(name)]:
                fault = f"a key must be a name, got {bad[0]!r}"
            above = f"{path}." if path else ""
            left += [(f"{above}{name}", level + 1, item) for name, item in value.items()]
        elif isinstance(value, list):
            left += [(path, level + 1, item) for item in value]
        if fault:
            raise UserError(f"{path}: {fault}" if path else fault)


def _fault(value: Any) -> str | None:
    """What is wrong with a value by itself."""
    if isinstance(value, str):
        if "\0" in value:
            return "text with a NUL character"
        if any("\ud800" <= c <= "\udfff" for c in value):
            return "text with half of a surrogate pair, which is no character"
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a number beyond 64 bits"
    if isinstance(value, float) and math.isnan(value):
        return ".nan is no number"
    if isinstance(value, float) and LARGEST < abs(value) < math.inf:
        return "a number beyond what 32 bits hold"
    if value is None or isinstance(value, bool | int | float | list | dict):
        return None
    return f"a {type(value).__name__} is no value of a setting"


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as the number that YAML 1.2 says it is, and a date as text."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in names.items():
            if count > 1 and name != "<<":
                problem = f'the key "{name}" is there twice'
                raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            problem = f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
