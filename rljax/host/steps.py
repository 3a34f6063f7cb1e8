"""The steps of a folder of checkpoints, as files: which there are, what was saved beside the state
of each, and whether a state that was read is the one that was saved.
"""

import contextlib
import gc
import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from rljax.host.digests import as_text, digest, digests
from rljax.trees import by_path, name_of

STATE, META, FROZEN = "state", "meta", "frozen"  # what is frozen lies beside the steps
STRAGGLERS_SECONDS = 0.1  # that reads take to end after the first of them failed
SEAL = "sha256"  # in what was saved beside a state: of all the rest of it
OF = {  # what a part of the state is of, by the first name of its paths
    "params": "model",
    "frozen": "model",
    "opt_state": "optimizer",
    "shaping": "shaping",
    "pending": "pending rollout",
}


class DamagedError(Exception):
    """A step that is not, or not wholly, what was saved; the text says why."""


def steps_in(folder: Path) -> list[int]:
    """The steps of a folder, sound or not, in their order; one still being written has no name."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def describe_leaves(tree: PyTree) -> dict[str, dict[str, Any]]:
    """Shape and type of every leaf, by its path; a key's are those of its data."""

    def described(leaf) -> dict[str, Any]:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}

    return {path: described(leaf) for path, leaf in by_path(tree).items()}


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be found as it was written, as plain JSON, with a hash of itself."""
    plain = json.loads(json.dumps(meta))
    return {**plain, SEAL: _hash(plain)}


def read_meta(folder: Path, step: int) -> dict[str, Any]:
    """What was saved beside the state of a step.

    Raises ``DamagedError`` if it is missing, or is not what was written.
    """
    meta = unsealed(folder / str(step) / META / "metadata")
    if meta.get("step") != step:
        raise DamagedError(f"{META}/metadata is of another step")
    return meta


def unsealed(path: Path) -> dict[str, Any]:
    """What ``sealed`` made, from a file. Raises ``DamagedError`` if it is not there, or another."""
    name = f"{path.parent.name}/{path.name}"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        seal = plain.pop(SEAL)
    except FileNotFoundError as error:
        raise DamagedError(f"{name} is missing") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError(f"{name} cannot be read") from error
    if seal != _hash(plain):
        raise DamagedError(f"{name} is not what was written")
    return plain


def difference(meta: Mapping[str, Any], tree: PyTree, *, of_part: bool = False) -> str | None:
    """Where the leaves that were saved are others than those of ``tree``, in words; else None.

    ``of_part``: there may be more of them.
    """
    wanted = describe_leaves(tree)
    saved = {
        path: {"shape": leaf["shape"], "dtype": leaf["dtype"]}
        for path, leaf in meta["leaves"].items()
    }
    for path in sorted(wanted if of_part else saved.keys() | wanted.keys()):
        there, here = saved.get(path), wanted.get(path)
        if there != here:
            of = OF.get(path.split("/")[0], "state")
            return f"of a different {of}: {path} is {_shown(there)} there and {_shown(here)} in"
    return None


def read_part(path: Path, abstract: PyTree) -> PyTree:
    """A saved tree, or the part of it that ``abstract`` has, laid out as that says.

    Raises ``DamagedError`` if it cannot be read. Each process reads by itself, and waits for none.
    """
    arguments = ocp.args.PyTreeRestore(
        item=abstract,
        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        partial_restore=True,
    )
    files = ocp.PyTreeCheckpointHandler()
    tree = _read(path, lambda: files.restore(path.absolute(), args=arguments))
    lacking = [name for name, leaf in by_path(tree).items() if not isinstance(leaf, jax.Array)]
    if lacking:
        raise DamagedError(f"{path.name}: {lacking[0]} is missing")
    return tree


def check_digests(meta: Mapping[str, Any], tree: PyTree) -> dict[str, str]:
    """The digests of a tree that was read.

    Raises ``DamagedError`` if one is not as it was saved.
    """
    found = digests(tree)
    wrong = [path for path, text in found.items() if meta["leaves"][path]["digest"] != text]
    if wrong:
        others = f" and {len(wrong) - 1} other(s)" if wrong[1:] else ""
        raise DamagedError(f"{wrong[0]}{others}: not the bytes that were saved")
    return found


def check_saved(path: Path, meta: Mapping[str, Any], under: str | None = None) -> int:
    """Reads a saved tree leaf by leaf, on one device; the number of its leaves.

    Args:
      under: by what name the tree is part of the state; by default it is the state itself, without
        what is frozen.

    Raises ``DamagedError`` if one is missing, or not as it was saved.
    """
    files = ocp.PyTreeCheckpointHandler()
    prefix = f"{under}/" if under else ""
    expected = {
        name
        for name in meta["leaves"]
        if name.startswith(prefix) and (under or not name.startswith(f"{FROZEN}/"))
    }
    tree = _read(path, lambda: files.metadata(path.absolute()))
    tree = getattr(tree, "tree", tree)
    names = by_path(tree).keys()
    if lacking := expected - {prefix + name for name in names}:
        raise DamagedError(f"{path.name}: {min(lacking)} is missing")
    for name in names:
        item = jax.tree_util.tree_map_with_path(
            lambda at, leaf, name=name: (
                jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
                if name_of(at) == name
                else ocp.PLACEHOLDER
            ),
            tree,
        )
        arguments = ocp.args.PyTreeRestore(
            item=item,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item),
        )
        leaves = by_path(_read(path, lambda a=arguments: files.restore(path.absolute(), args=a)))
        found = as_text(jax.jit(digest)(leaves[name]))
        if found != meta["leaves"].get(prefix + name, {}).get("digest"):
            raise DamagedError(f"{prefix}{name}: not the bytes that were saved")
    return len(expected)


def _read(path: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` makes of the files under a path. Raises ``DamagedError`` if it cannot."""
    try:
        with silent_threads():
            return read()
    except jax.errors.JaxRuntimeError:  # of the devices, such as too little memory
        raise
    except Exception as error:  # whatever damaged files make of the libraries that read them
        raise DamagedError(f"{path.name}: {type(error).__name__}: {_line(error)}") from error


@contextlib.contextmanager
def silent_threads() -> Iterator[None]:
    """Of several reads or writes that fail, one raises; the others are not to print pages."""
    hooks, log = (sys.excepthook, sys.unraisablehook), logging.getLogger("asyncio")
    level = log.level
    sys.excepthook = sys.unraisablehook = lambda *_: None
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    except BaseException:
        time.sleep(STRAGGLERS_SECONDS)
        with warnings.catch_warnings(action="ignore"):
            gc.collect()  # their coroutines complain when they are collected
        raise
    finally:
        sys.excepthook, sys.unraisablehook = hooks
        log.setLevel(level)


def _hash(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _shown(leaf: Mapping[str, Any] | None) -> str:
    if leaf is None:
        return "absent"
    return f"{leaf['dtype']} ({', '.join(map(str, leaf['shape']))})"


def _line(error: Exception, most: int = 160) -> str:
    text = " ".join(str(error).split()).partition(" [tensorstore_spec")[0]
    return text if len(text) <= most else f"… {text[-most:]}"  # the cause comes last
