"""Functions that installed packages add to those that a config can name.

A package declares them as entry points, one name each, in its ``pyproject.toml``::

    [project.entry-points."rljax.shaping"]
    smooth_band = "length_shaper:smooth_band"

Finding a name reads what the installer wrote about the packages, once; nothing is imported but the
module of the function that is asked for.
"""

import functools
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

from rljax.errors import UserError

GROUPS = ("rljax.algorithms", "rljax.rewards", "rljax.shaping")


class Plugin(NamedTuple):
    """One entry point."""

    group: str
    name: str
    target: str  # module:function
    package: str
    version: str

    @property
    def origin(self) -> str:
        return f"{self.package} {self.version}"


def installed(group: str) -> tuple[Plugin, ...]:
    """The entry points of a group, by name; none of a group that is not among ``GROUPS``."""
    return tuple(plugin for plugin in _everything() if plugin.group == group)


def packages() -> dict[str, str]:
    """The version of every package with plug-ins, by its name."""
    return {plugin.package: plugin.version for plugin in _everything()}


def find(name: str, group: str, *, built_in: bool = False) -> Plugin | None:
    """The plug-in of a name, or None.

    Args:
      built_in: rljax itself has a function of this name.

    Raises ``UserError`` if the name may mean several functions: which one it was would change with
    what is installed.
    """
    found = [plugin for plugin in installed(group) if plugin.name == name]
    if len(found) + built_in > 1:
        meant = [("rljax itself", f"{group}:{name}")] if built_in else []
        meant += [(plugin.origin, plugin.target) for plugin in found]
        origins, targets = zip(*meant, strict=True)
        raise UserError(
            f'"{name}" is there more than once, in {_and(origins, "and")}; '
            f"say which, as {_and(targets, 'or')}"
        )
    return found[0] if found else None


def load(plugin: Plugin) -> Callable:
    """Imports a plug-in's function. Raises ``UserError`` if there is none."""
    said = f'the entry point "{plugin.name} = {plugin.target}" of {plugin.origin}'
    try:
        found = metadata.EntryPoint(plugin.name, plugin.target, plugin.group).load()
    except (Exception, SystemExit) as error:
        raise UserError(f"cannot import {said}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(f"{said} is no function, but a {type(found).__name__}")
    return found


@functools.cache
def _everything() -> tuple[Plugin, ...]:
    """By name; each once, however often its package is on the import path."""
    found = {}
    for distribution in metadata.distributions():
        try:
            mine = [point for point in distribution.entry_points if point.group in GROUPS]
            about = distribution.metadata if mine else {}
        except Exception:  # what cannot be read belongs to somebody else, or adds nothing
            continue
        package, version = (about.get(key) or "?" for key in ("Name", "Version"))
        for point in mine:
            plugin = Plugin(point.group, point.name, point.value, package, version)
            found.setdefault((plugin.group, plugin.name, plugin.target, package.lower()), plugin)
    return tuple(sorted(found.values()))


def _and(items: tuple[str, ...], word: str) -> str:
    *some, last = items
    return f"{', '.join(some)} {word} {last}"
