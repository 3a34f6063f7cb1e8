"""The reference's log-probs of given rows, computed once before training, and kept in a file."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from safetensors.numpy import load_file, save_file

from rljax.data import SequenceTable
from rljax.errors import UserError
from rljax.host.agree import is_writer, meet
from rljax.phases import Ahead
from rljax.roles import Trees
from rljax.sharding import row_sharding

MATCHED, MISMATCHED = "logprobs", "mismatched_logprobs"


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
        unfinished = path.with_suffix(".tmp")
        save_file(found, unfinished)
        unfinished.rename(path)
    meet("reference")


def read_reference(path: Path, tables: Mapping[str, SequenceTable]) -> dict[str, SequenceTable]:
    """The tables with the log-probs that were written.

    Raises ``UserError`` if they are of other rows.
    """
    found = load_file(path)
    for name, table in tables.items():
        shape = (len(table) * table.together, table.width)
        if found[f"{name}/{MATCHED}"].shape != shape:
            raise UserError(f"{path}: holds the reference's log-probs of other rows; delete it")
    return {
        name: table.with_reference(found[f"{name}/{MATCHED}"], found.get(f"{name}/{MISMATCHED}"))
        for name, table in tables.items()
    }
