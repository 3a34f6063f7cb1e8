"""Event files for TensorBoard."""

import time
from pathlib import Path

from rljax.host.listeners import Listener
from rljax.host.sinks.packages import needed


def tensorboard_sink(folder: Path) -> Listener:
    """Scalars in event files under ``folder``.

    The files of an earlier start stay as they are. A new one begins with a mark at the step that
    the run goes on from, by which readers leave out what the earlier ones have from there on.
    """
    needed("tensorboard")
    events = _Events(folder)
    return Listener(
        "metrics.tensorboard",
        begin=events.begin,
        on_step=events.on_step,
        on_eval=events.on_eval,
        close=events.close,
    )


class _Events:
    def __init__(self, folder: Path):
        self._folder = folder
        self._writer = None

    def begin(self, step: int, metrics: dict[str, float], figures: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(self._folder))
        self._add(step, session_log=SessionLog(status=SessionLog.START))
        if metrics:
            self.on_step(step, metrics)
        if figures:
            self.on_eval(step, figures, [])

    def on_step(self, step: int, metrics: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(step, summary=Summary(value=values))

    def on_eval(self, step: int, figures: dict[str, float], samples: list[dict]) -> None:
        self.on_step(step, {f"eval/{name}": value for name, value in figures.items()})

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, step: int, **what) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()  # at once to be seen, and to hear of a full disk
