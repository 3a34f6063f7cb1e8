"""The responses of a run's evaluations: a Parquet table for each, in the folder ``samples``."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rljax.errors import UserError
from rljax.host.files import write_whole
from rljax.host.secrets import redacted

SAMPLES = "samples"  # the folder, in that of a run


def table_path(run: Path, step: int) -> Path:
    """Where the table of the evaluation at a step lies."""
    return run / SAMPLES / f"{step:08d}.parquet"


def write_samples(run: Path, step: int, samples: list[dict[str, Any]]) -> None:
    """Writes the table of an evaluation, whole, in place of one that is there. Raises ``OSError``."""
    path = table_path(run, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [redacted({"step": step, **sample}, by_looks=False) for sample in samples]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    write_whole(path, sink.getvalue().to_pybytes())


def sampled_steps(run: Path) -> list[int]:
    """The steps whose evaluations have a table, in order."""
    return sorted(
        int(path.stem) for path in (run / SAMPLES).glob("*.parquet") if path.stem.isdecimal()
    )


def read_samples(run: Path, step: int) -> list[dict[str, Any]]:
    """The table of an evaluation, row by row. Raises ``UserError`` if it cannot be read."""
    path = table_path(run, step)
    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {error}") from error
