"""The sizes that programs are compiled for, all before the first request."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from rljax.endpoint.table import Programs, RowSettings
from rljax.types import Params

FACTOR = 4  # between one size and the next


def warm_up(
    programs: Programs,
    params: Params,
    rows: int,
    widths: Sequence[int],
    columns: Sequence[int],
    compiling: Callable[[str], None],
) -> None:
    """Compiles the programs for prompts of all ``widths`` and tables of all ``columns``.

    ``compiling`` is called before each, and told what it is.
    """
    zero, nowhere = np.int32(0), np.zeros(rows, bool)
    for size in columns:
        compiling(f"decode, {rows} rows of {size} columns")
        table = programs.empty(size)
        table, _ = programs.decode(params, table, RowSettings.free(rows), zero, zero)
        table = jax.block_until_ready(programs.shift(table, zero))
        for width in (width for width in widths if width < size):
            compiling(f"prompts of {width} columns before {size}")
            tokens, mask = np.zeros((1, width), np.int32), np.ones((1, width), bool)
            logits, cache = programs.prefill(params, tokens, mask)
            table = programs.place(table, logits, cache, mask, nowhere, np.int32(width))
            jax.block_until_ready(table)
        for larger in (larger for larger in columns if larger > size):
            programs.widen(table, larger)


def sizes(least: int, most: int) -> tuple[int, ...]:
    """The sizes that programs are compiled for.

    >>> sizes(64, 1000), sizes(64, 8)
    ((64, 256, 1000), (8,))
    """
    count = max(math.ceil(math.log(most / least, FACTOR)), 0)
    return (*(least * FACTOR**i for i in range(count)), most)


def fitting(sizes: Sequence[int], needed: int) -> int:
    """The smallest size that is no less than ``needed``."""
    return next(size for size in sizes if size >= needed)
