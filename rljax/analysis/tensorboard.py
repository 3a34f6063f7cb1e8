"""Scalars of TensorBoard's event files, of whatever trainer, read by its own package."""

import logging
from pathlib import Path

from rljax.analysis.finding import EVENT_FILES
from rljax.analysis.series import Series, series_of
from rljax.errors import UserError

SCALARS = "scalars"  # the plug-in that they are written for


def read_scalars(folder: Path) -> dict[str, Series]:
    """Every scalar in the event files of a folder by its tag, later files over earlier ones.

    Where a file begins with a step that a run went on from, what came before has no later one, as
    TensorBoard has it. What a crash has damaged ends the file that it is in.

    Raises ``UserError`` if the package is not installed, or a file cannot be read.
    """
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise UserError(
            f"{folder} holds event files, which TensorBoard reads, and it is not installed: "
            "pip install tensorboard"
        ) from error
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    found: dict[str, dict[int, float]] = {}
    plugins: dict[str, str] = {}
    for path in sorted(folder.glob(EVENT_FILES), key=lambda path: path.name):
        try:
            for event in EventFileLoader(str(path)).Load():
                if event.session_log.status == SessionLog.START:
                    for points in found.values():
                        for step in [step for step in points if step >= event.step]:
                            del points[step]
                for value in event.summary.value:
                    plugin = value.metadata.plugin_data.plugin_name
                    if plugins.setdefault(value.tag, plugin) != SCALARS:
                        continue
                    points = found.setdefault(value.tag, {})
                    points[event.step] = float(make_ndarray(value.tensor))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    return {tag: series_of([*points], [*points.values()]) for tag, points in found.items()}
