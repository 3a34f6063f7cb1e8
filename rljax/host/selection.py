"""Which evaluation of a run was the best, and whether it is time to stop.

Both follow from the records of its evaluations alone, so that a resumed run decides the same.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from rljax.errors import UserError, nearest

Record = dict[str, Any]  # "step", and the figures of an evaluation
Mode = Literal["max", "min"]  # whether more of a figure is better, or less


def best_record(records: Sequence[Record], figure: str, mode: Mode) -> Record | None:
    """The record with the best ``figure``, the earliest of equals; None if there is no number,
    but NaN, or None where it was read from a file.

    Older records may lack it, for it may be asked for when a run is resumed. Raises ``UserError``
    if the newest does.

    >>> best_record([{"step": 0, "reward": 0.5}, {"step": 8, "reward": 0.75}], "reward", "max")
    {'step': 8, 'reward': 0.75}
    """
    for record in records[-1:]:
        known = record.keys() - {"step"}
        if figure not in known:
            raise UserError(
                f"evaluation.best: the evaluation at step {record['step']} has no figure "
                f'"{figure}"; {nearest(figure, known)}'
            )
    numbers = [r for r in records if r.get(figure) is not None and not math.isnan(r[figure])]
    best = max if mode == "max" else min
    return best(numbers, key=lambda record: record[figure], default=None)


def out_of_patience(records: Sequence[Record], figure: str, mode: Mode, patience: int) -> bool:
    """Whether the last ``patience`` evaluations brought nothing better than the best before them.

    False as long as there is none before them. Raises ``UserError`` as ``best_record`` does.
    """
    best = best_record(records, figure, mode)
    having = [record for record in records if figure in record]
    before = having[: max(len(having) - patience, 0)]
    return bool(before) and best_record(before, figure, mode) is best
