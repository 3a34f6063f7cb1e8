"""Who listens to a run cannot hold it up, stop it, or keep the others from hearing."""

import math
import threading
import time
from pathlib import Path

import pytest

from rljax.host import listeners
from rljax.host.listeners import Listener, Listeners


def listening(*groups):
    """Listeners of which one can see what was reported."""
    told = []
    return Listeners(groups, told.append), told


def texts(told):
    return [failure.text for failure in told]


class Hearing:
    """Notes what it hears, and on which thread."""

    def __init__(self, name, log):
        def note(kind):
            return lambda *arguments: log.append((name, kind, *arguments))

        kinds = ("begin", "on_step", "on_eval", "on_save", "close")
        self.listener = Listener(name, **{kind: note(kind) for kind in kinds})


def test_all_hear_everything_in_order(tmp_path):
    log = []
    heard, told = listening([Hearing("a", log).listener, Hearing("b", log).listener])
    heard.begin(2, {"reward": None, "n": 3}, {})
    heard.on_step(3, {"reward": 0.5})
    heard.on_eval(3, {"accuracy": 1.0}, [{"prompt": "1+1="}])
    heard.on_save(3, tmp_path)
    heard.close()
    of_a = [call[1:] for call in log if call[0] == "a"]
    kind, step, metrics, figures = of_a[0]
    assert (kind, step, figures) == ("begin", 2, {})
    assert math.isnan(metrics["reward"])
    assert type(metrics["n"]) is float
    assert of_a[1:] == [
        ("on_step", 3, {"reward": 0.5}),
        ("on_eval", 3, {"accuracy": 1.0}, [{"prompt": "1+1="}]),
        ("on_save", 3, tmp_path),
        ("close",),
    ]
    assert [call[:2] for call in log] == [(n, call[0]) for call in of_a for n in "ab"]
    assert told == []


def test_one_that_fails_is_told_once_with_its_trace_and_called_again():
    steps, where = [], threading.get_ident()

    def fail(step, metrics):
        steps.append(step)
        raise SystemExit("no") if step == 1 else ValueError("nor this")

    log, reporting = [], []
    after = Hearing("after", log).listener
    heard = Listeners(
        [[Listener("mine", on_step=fail), after]],
        lambda failure: reporting.append((failure, threading.get_ident())),
    )
    for step in (1, 2, 3):
        heard.on_step(step, {})
    heard.close()
    assert steps == [1, 2, 3]
    assert [call[2] for call in log if call[1] == "on_step"] == [1, 2, 3]  # the other hears all
    (first, summary) = [failure for failure, _ in reporting]
    assert first.text == "mine failed in on_step: SystemExit: no; the run goes on"
    assert 'raise SystemExit("no")' in first.trace
    assert (summary.text, summary.trace) == ("mine failed in 3 of 3 calls", None)
    assert {thread for _, thread in reporting} == {where}


def test_one_that_cannot_begin_gets_nothing_more():
    log = []

    def fail(*_):
        raise ConnectionError("nobody is there")

    broken = Hearing("broken", log).listener._replace(begin=fail)
    heard, told = listening([broken])
    heard.begin(0, {}, {})
    heard.on_step(1, {})
    heard.close()
    assert log == []
    assert texts(told) == [
        "broken failed in begin: ConnectionError: nobody is there; the run goes on without it"
    ]


def test_one_that_hangs_holds_up_neither_the_run_nor_the_others(monkeypatch):
    monkeypatch.setattr(listeners, "WAITING", 4)
    hung, release, log, threads = threading.Event(), threading.Event(), [], []

    def hang(step, metrics):
        threads.append(threading.current_thread())
        hung.set()
        release.wait(10)
        log.append(("hanging", "on_step", step))

    heard, told = listening([Listener("hanging", on_step=hang)], [Hearing("other", log).listener])
    began = time.monotonic()
    heard.on_step(1, {})
    assert hung.wait(10)
    (thread,) = threads
    for step in range(2, 8):
        heard.on_step(step, {})
        while ("other", "on_step", step, {}) not in log:
            assert time.monotonic() < began + 10
    heard.close(0.2)
    assert time.monotonic() < began + 5
    release.set()
    assert texts(told)[0].startswith("hanging does not keep up: from step 5 on")
    lost = "hanging lost 7 call(s)"  # 1 in hand, 3 waiting, 3 that came after
    assert texts(told)[1:] == [f"hanging in on_step has not come back; {lost}"]
    assert ("other", "close") in log
    thread.join(10)
    assert [call[2] for call in log if call[0] == "hanging"] == [1]  # given up, and not taken up


def test_a_call_that_takes_long_is_told_once_while_the_run_goes_on(monkeypatch):
    monkeypatch.setattr(listeners, "LONG_SECONDS", 0.05)
    hung, release = threading.Event(), threading.Event()

    def hang(step, path):
        hung.set()
        release.wait(10)

    heard, told = listening([Listener("first", on_save=hang), Listener("second")])
    heard.on_save(1, Path())
    assert hung.wait(10)
    time.sleep(0.1)
    heard.on_step(2, {})
    heard.on_step(3, {})
    release.set()
    heard.close()
    assert texts(told) == ["first in on_save has not come back for 0 s; first, second wait(s)"]


@pytest.mark.parametrize(("error", "least", "most"), [(None, 0.4, 5), (ValueError, 0.1, 0.35)])
def test_a_run_that_fails_waits_less_for_them(monkeypatch, error, least, most):
    monkeypatch.setattr(listeners, "END_SECONDS", 0.4)
    monkeypatch.setattr(listeners, "STOP_SECONDS", 0.1)
    release = threading.Event()
    heard, told = listening([Listener("slow", on_step=lambda *_: release.wait(10))])
    heard.on_step(1, {})
    began = time.monotonic()
    heard.__exit__(error, error and error(), None)
    assert least <= time.monotonic() - began < most
    release.set()
    assert texts(told) == ["slow in on_step has not come back; slow lost 1 call(s)"]
