"""What listens to a run: sinks of metrics, and the user's callbacks.

They are fed on threads of their own, so that none of them, slow, hanging or failing, holds up the
run or another. What becomes of them is told where the run goes on, and never from their threads.
"""

import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

WAITING = 1024  # calls, of which more are lost
END_SECONDS = 30.0  # that listeners are given for what they have not heard when a run ends
STOP_SECONDS = 3.0  # and when it is stopped, or fails
LONG_SECONDS = 60.0  # of a call, from which on it is said


def _ignore(*_: Any) -> None:
    """Of what a listener does not listen to."""


class Listener(NamedTuple):
    """Functions that are called in the order of what happens, all on one thread."""

    name: str
    # The step that the run goes on from, or 0, with its metrics and figures, as far as it has them.
    begin: Callable[[int, dict[str, float], dict[str, float]], None] = _ignore
    on_step: Callable[[int, dict[str, float]], None] = _ignore  # step, metrics
    on_eval: Callable[[int, dict[str, float], list[dict]], None] = _ignore  # and samples
    on_save: Callable[[int, Path], None] = _ignore  # step, folder of the checkpoint
    close: Callable[[], None] = _ignore


class Failure(NamedTuple):
    """What is told of a listener."""

    text: str
    trace: str | None = None


class Listeners:
    """Groups of listeners, each of which is fed by a thread.

    A function that fails is reported once, and called again; a listener that cannot ``begin`` gets
    nothing more. ``report`` is called by whoever calls here.
    """

    def __init__(self, groups: Sequence[Sequence[Listener]], report: Callable[[Failure], None]):
        self._report = report
        self._feeds = [_Feed(group) for group in groups if group]

    def begin(self, step: int, metrics: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
        self._tell("begin", step, _numbers(metrics), _numbers(figures))

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._tell("on_step", step, _numbers(metrics))

    def on_eval(self, step: int, figures: Mapping[str, Any], samples: list[dict]) -> None:
        self._tell("on_eval", step, _numbers(figures), samples)

    def on_save(self, step: int, path: Path) -> None:
        self._tell("on_save", step, path)

    def close(self, seconds: float = END_SECONDS) -> None:
        """Waits so long until all have heard everything, and says what is lost or has failed."""
        deadline = time.monotonic() + seconds
        for feed in self._feeds:
            feed.end()
        for feed in self._feeds:
            feed.join(deadline)
        self._say_news()
        for feed in self._feeds:
            for text in feed.sum_up():
                self._report(Failure(text))
        self._feeds = []

    def __enter__(self) -> "Listeners":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.close(END_SECONDS if error is None else STOP_SECONDS)

    def _tell(self, kind: str, *arguments: Any) -> None:
        for feed in self._feeds:
            feed.watch()
            feed.put(kind, arguments)
        self._say_news()

    def _say_news(self) -> None:
        for feed in self._feeds:
            while feed.news:
                self._report(feed.news.pop(0))


class _Feed:
    """A thread that tells some listeners, in turn, what is put into its queue."""

    def __init__(self, listeners: Sequence[Listener]):
        self._listeners = listeners
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._put = self._heard = 0  # calls, to all of them; each counted by one thread
        self._told, self._failed = [0] * len(listeners), [0] * len(listeners)  # calls of each
        self._useless: set[int] = set()  # those that could not begin
        self._lost = 0  # calls that did not fit
        self._given_up = False
        self._busy: tuple[str, float] | None = None  # the function that is being called, since when
        self._told_long = False
        self.news: list[Failure] = []  # appended to by one thread, taken from by the other
        self._thread = threading.Thread(target=self._run, name=self._names(), daemon=True)
        self._thread.start()

    def put(self, kind: str, arguments: tuple) -> None:
        """Never waits: where too many are waiting, the call is lost."""
        if self._put - self._heard >= WAITING:
            if not self._lost:
                text = f"{self._names()} does not keep up: from step {arguments[0]} on, what comes "
                self.news.append(Failure(f"{text}while {WAITING} calls are waiting is lost to it"))
            self._lost += 1
            return
        self._put += 1
        self._queue.put((kind, arguments))

    def watch(self) -> None:
        """Says once of a call that takes very long."""
        busy = self._busy
        if busy and not self._told_long and time.monotonic() - busy[1] > LONG_SECONDS:
            self._told_long = True
            text = f"{busy[0]} has not come back for {LONG_SECONDS:.0f} s; {self._names()} wait(s)"
            self.news.append(Failure(text))

    def end(self) -> None:
        """Says that nothing more will come."""
        self._queue.put(("close", ()))

    def join(self, deadline: float) -> None:
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        self._given_up = self._thread.is_alive()

    def sum_up(self) -> list[str]:
        """What of it was lost or has failed, in words."""
        texts = [
            f"{listener.name} failed in {self._failed[at]} of {self._told[at]} calls"
            for at, listener in enumerate(self._listeners)
            if self._failed[at] > 1
        ]
        if lost := self._lost + self._put - self._heard:
            busy = f"{self._busy[0]} has not come back; " if self._given_up and self._busy else ""
            texts.append(f"{busy}{self._names()} lost {lost} call(s)")
        elif self._given_up:
            texts.append(f"{self._names()} was not closed in time")
        return texts

    def _names(self) -> str:
        return ", ".join(listener.name for listener in self._listeners)

    def _run(self) -> None:
        kind = ""
        while kind != "close":
            kind, arguments = self._queue.get()
            for at, listener in enumerate(self._listeners):
                if self._given_up:
                    return
                if at not in self._useless:
                    self._call(at, listener, kind, arguments)
            self._heard += kind != "close"

    def _call(self, at: int, listener: Listener, kind: str, arguments: tuple) -> None:
        function = getattr(listener, kind)
        if function is _ignore:
            return
        self._told[at] += 1
        self._busy = f"{listener.name} in {kind}", time.monotonic()
        try:
            function(*arguments)
        except BaseException as error:  # a callback's sys.exit, too
            self._failed[at] += 1
            what = " ".join(f"{type(error).__name__}: {error}".split())
            then = "the run goes on"
            if kind == "begin":
                self._useless.add(at)
                then = "the run goes on without it"
            if self._failed[at] == 1:
                text = f"{listener.name} failed in {kind}: {what}; {then}"
                self.news.append(Failure(text, traceback.format_exc()))
        self._busy = None


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Plain floats; NaN for what a record has null for."""
    return {name: float("nan" if x is None else x) for name, x in values.items()}
