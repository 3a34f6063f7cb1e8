"""The responses of a run's evaluations: a Parquet table for each, in the folder ``samples``."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rljax.errors import UserError
from rljax.host.files import write_whole
from rljax.host.secrets import redacted

SAMPLES = "samples"  # the folder, in that of a run
REWARD = "reward/"  # begins the column of a reward, which goes on with its name
COLUMNS = {  # in their order; those of the rewards by name come before ``reward_raw``
    "step": pa.int64(),
    "prompt_index": pa.int64(),
    "source": pa.string(),
    "prompt": pa.string(),
    "response": pa.string(),
    "greedy": pa.bool_(),
    "length_tokens": pa.int64(),
    "length_verdict": pa.string(),
    "truncated": pa.bool_(),
    "correct": pa.bool_(),
    "reward_raw": pa.float64(),
    "shaping": pa.float64(),
    "reward_shaped": pa.float64(),
}


def table_path(run: Path, step: int) -> Path:
    """Where the table of the evaluation at a step lies."""
    return run / SAMPLES / f"{step:08d}.parquet"


def write_samples(run: Path, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
    """Writes the table of an evaluation, in place of one that is there. Raises ``OSError``."""
    path = table_path(run, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, [{"step": step, **sample} for sample in samples])


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows as a Parquet table, redacted. Raises ``OSError``.

    The same rows give the same bytes, and a column has its type though all of it is null.
    """
    there = list(dict.fromkeys(name for row in rows for name in row))
    rewards = [name for name in there if name.startswith(REWARD)]
    before = list(COLUMNS).index("reward_raw")
    names = [*list(COLUMNS)[:before], *rewards, *list(COLUMNS)[before:]]
    columns = {}
    for name in [name for name in names if name in there]:
        kind = COLUMNS.get(name, pa.float64())
        values = [row.get(name) for row in rows]
        if kind == pa.string():
            values = redacted(values, by_looks=False)
        columns[redacted(name, by_looks=False)] = pa.array(values, kind)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
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
        said = " ".join(str(error).split())
        raise UserError(f"cannot read {path}: {said}") from error


def keep_samples(run: Path, steps: Collection[int]) -> list[int]:
    """Removes the tables of other steps, which a resumed run will write again; returns the steps
    that have none. Raises ``OSError``."""
    there = sampled_steps(run)
    for step in there:
        if step not in steps:
            table_path(run, step).unlink()
    return sorted(set(steps) - set(there))
