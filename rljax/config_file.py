"""A YAML file, and ``key=value`` changes to it, as the tree that a configuration is made of."""

import os
from pathlib import Path
from typing import Any

from rljax.errors import UserError
from rljax.yaml_text import MOST_BYTES, check_plain, read_yaml


def builtin_configs() -> dict[str, Path]:
    """The recipes that come with rljax, by the names of their files: in the package when installed,
    else in the repository."""
    package = Path(__file__).parent
    inside, beside = package / "configs", package.parent / "configs"
    folder = inside if inside.is_dir() else beside
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def builtin_config(name: str) -> Path:
    """One of them."""
    found = builtin_configs().get(name)
    if found is None:
        raise UserError(f"the built-in config {name} is missing from this installation")
    return found


def read_config_file(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The tree of a file, laid over the one that it extends, with the overrides applied.

    Raises ``UserError`` if one of these cannot be read.
    """
    tree = _read(path)
    for override in overrides:
        apply_override(tree, override)
    check_plain(tree)
    return _anchored(tree, path.parent)


def _read(path: Path, extended_by: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tree of a YAML file, laid over the one that it extends."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise UserError(f"more than {MOST_BYTES:,} bytes; this is no config")
        tree = read_yaml(text.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of keys to values")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    seen = (*extended_by, os.path.realpath(path))
    if not isinstance(base, str) or os.path.realpath(path.parent / base) in seen:
        raise UserError(f"{path}: extends: expected the name of another file, got {base!r}")
    base_path = path.parent / base
    return _laid_over(_anchored(_read(base_path, seen), base_path.parent), tree)


def _anchored(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tree with the data files that lie beside it named from anywhere."""

    def anchored(source):
        if isinstance(source, list):
            return [anchored(one) for one in source]
        if isinstance(source, dict) and "source" in source:
            return {**source, "source": anchored(source["source"])}
        if (
            isinstance(source, str)
            and not os.path.exists(source)
            and os.path.exists(folder / source)
        ):
            return os.path.realpath(folder / source)
        return source

    for section, key in (("data", "train"), ("data", "eval"), ("warm_start", "data")):
        if isinstance(tree.get(section), dict) and key in tree[section]:
            tree[section][key] = anchored(tree[section][key])
    return tree


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Keys of ``above``, and of ``below`` where it has none; a node of another function, with its
    keywords, takes the whole place of the one below, and so does a source with its settings."""
    merged = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if isinstance(value, dict) and isinstance(old, str) and not {"fn", "source"} & value.keys():
            old = {"fn": old}
        both = isinstance(value, dict) and isinstance(old, dict)
        if both and "source" not in value and value.get("fn", old.get("fn")) == old.get("fn"):
            value = _laid_over(old, value)
        merged[key] = value
    return merged


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets ``a.b.c=value`` in a tree; the value is read as YAML."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f'cannot read "{override}": overrides are key=value, such as seed=1')
    try:
        value = read_yaml(text)
    except UserError as error:
        raise UserError(f'cannot read the value of "{override}": {error}') from error
    if path == "run_dir" and value is not None and not isinstance(value, str):
        value = text  # a folder may be called 0007
    *parents, last = path.split(".")
    for depth, name in enumerate(parents, start=1):
        child = tree.get(name)
        if child is None or child is False:
            child = tree[name] = {}
        elif isinstance(child, str):
            child = tree[name] = {"fn": child}
        elif not isinstance(child, dict):
            raise UserError(f'"{override}": {".".join(parents[:depth])} has no keys below it')
        tree = child
    tree[last] = value


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
