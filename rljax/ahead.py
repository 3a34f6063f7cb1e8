"""The reference's log-probs of given rows, computed once before training, and kept in a file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from rljax.data import SequenceTable
from rljax.errors import UserError
from rljax.host.agree import is_writer, meet
from rljax.host.files import write_whole
from rljax.phases import Ahead
from rljax.roles import Trees
from rljax.sharding import row_sharding

MATCHED, MISMATCHED = "logprobs", "mismatched_logprobs"
REFERENCE = "reference.safetensors"  # in the folder of a run
DIGEST = "sha256"


def write_reference(
    path: Path,
    tables: Mapping[str, SequenceTable],
    ahead: Ahead,
    trees: Trees,
    mesh: Mesh,
    items_at_once: int,
) -> None:
    """Writes the log-probs [rows, width] of every row of the tables, as safetensors."""
    rows = row_sharding(mesh)
    found: dict[str, np.ndarray] = {}
    for name, table in tables.items():
        parts: dict[str, list[np.ndarray]] = {}
        compute = None
        for start in range(0, len(table), items_at_once):
            at = np.arange(start, start + items_at_once)
            batch = jax.device_put(table.take(np.where(at < len(table), at, -1)), rows)
            if compute is None:
                compute = jax.jit(ahead.logprobs).lower(trees, batch).compile()
                meet(f"reference of {name}")
            matched, mismatched = compute(trees, batch)
            for key, rows_found in ((MATCHED, matched), (MISMATCHED, mismatched)):
                if rows_found is not None:
                    whole = multihost_utils.process_allgather(rows_found, tiled=True)
                    parts.setdefault(f"{name}/{key}", []).append(whole)
        count = len(table) * table.together
        found |= {key: np.concatenate(arrays)[:count] for key, arrays in parts.items()}
    if is_writer():
        of = {f"rows of {name}": table.fingerprint for name, table in tables.items()}
        try:
            write_whole(path, save(found, {**of, DIGEST: _digest(found)}))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
    meet("reference")


def fault_of(path: Path, tables: Mapping[str, SequenceTable] | None = None) -> str | None:
    """What is wrong with a file of log-probs, in words: it is missing, damaged, or of other rows
    than the ``tables``."""
    if not path.exists():
        return "is missing"
    try:
        with safe_open(path, "np") as file:
            known = file.metadata() or {}
        if _digest(load_file(path)) != known.get(DIGEST):
            return "is damaged"
    except (OSError, SafetensorError):
        return "is damaged"
    for name, table in (tables or {}).items():
        if known.get(f"rows of {name}") != table.fingerprint:
            return f"is of other rows than those of {name}"
    return None


def read_reference(path: Path, tables: Mapping[str, SequenceTable]) -> dict[str, SequenceTable]:
    """The tables with the log-probs that were written."""
    found = load_file(path)
    return {
        name: table.with_reference(found[f"{name}/{MATCHED}"], found.get(f"{name}/{MISMATCHED}"))
        for name, table in tables.items()
    }


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Of all of them, with their names."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode())
        found.update(np.ascontiguousarray(arrays[name]))
    return found.hexdigest()
