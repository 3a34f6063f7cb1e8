"""Signals, the end of the time, and work that does not come to its end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rljax.host import stopping
from rljax.host.stopping import Signals, Stopped


def until_stopped(signals, seconds=5.0):
    """The code that ``check`` raises with."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            signals.check()
        except Stopped as stop:
            return stop.code
        time.sleep(0.01)
    return None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_is_noted_and_asked_for(number, code, capfd):
    before = signal.getsignal(number)
    with Signals() as signals:
        signals.check()
        os.kill(os.getpid(), number)
        assert until_stopped(signals) == code
    assert signal.getsignal(number) is before
    assert "rljax: stopping" in capfd.readouterr().err


def test_the_time_limit_counts_what_is_still_to_be_done():
    with Signals(time_limit_seconds=100) as signals:
        signals.check(needed_seconds=50)
        with pytest.raises(Stopped) as stop:
            signals.check(needed_seconds=200)
    assert stop.value.code == 75


def test_near_its_end_it_is_said_though_nobody_asks(monkeypatch, capfd):
    monkeypatch.setattr(stopping, "EARLY_SECONDS", 0.2)
    with Signals(time_limit_seconds=0.3) as signals:
        signals.check()
        assert until_stopped(signals) == 75
    assert "out of time: stopping" in capfd.readouterr().err


@pytest.mark.parametrize("unsaved", [False, True])
def test_work_that_can_be_done_again_is_broken_off(unsaved, monkeypatch):
    monkeypatch.setattr(stopping, "PATIENT_SECONDS", 0.2)
    left = threading.Event()

    def leave(words, code):
        left.set()
        threading.Event().wait()  # it does not return

    with Signals(leave=leave) as signals:
        signals.unsaved = unsaved
        os.kill(os.getpid(), signal.SIGTERM)
        assert left.wait(1.0) != unsaved


HANGS = """
import sys, time
from rljax.host.stopping import Signals
with Signals() as signals:
    signals.unsaved = True
    print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        finally:
            pass
"""


def test_the_second_ctrl_c_ends_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None  # it waits for the step
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=5)
    assert process.returncode == 130
    assert "Ctrl-C again stops at once" in err
    assert err.endswith("rljax: interrupted\n")
