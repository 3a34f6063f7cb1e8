"""With what a run was made: the versions of its libraries, and the commit of its code."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from rljax import plugins

LIBRARIES = ("rljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
GIT_SECONDS = 5  # that git may take


def versions() -> dict[str, str]:
    """Of Python, the libraries that are installed, and packages with plug-ins, by name."""
    found = {"python": platform.python_version(), **plugins.packages()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> dict[str, Any] | None:
    """The commit of the repository that holds a folder, and whether files differ from it; None if
    there is no repository, or no git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit.strip(), "changed": bool(_git(folder, "status", "--porcelain"))}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
