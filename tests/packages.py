"""Packages with entry points, as an installer leaves them on the import path."""

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path

from rljax import plugins

EXAMPLE = Path(__file__).parent.parent / "examples" / "length_shaper_plugin"


def install(
    monkeypatch,
    folder: Path,
    package: str,
    points: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
    **modules: str,
) -> None:
    """Writes a package with ``points``, targets by name by group, and ``modules``, their source by
    name, into a folder that stands on the import path for one test."""
    about = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = []
    for group, named in points.items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in named.items())]
    (about / "entry_points.txt").write_text("\n".join(lines))
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    look_again(monkeypatch)


def install_example(monkeypatch, folder: Path) -> None:
    """The example, as its own ``pyproject.toml`` declares it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    install(
        monkeypatch, folder, project["name"], project["entry-points"], version=project["version"]
    )


def look_again(monkeypatch) -> None:
    """Forgets which packages were found, and once more when the test is over."""
    anew = functools.cache(plugins._everything.__wrapped__)
    monkeypatch.setattr(plugins, "_everything", anew)
