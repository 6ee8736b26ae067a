"""Signals that ask a run to save and stop."""

import os
import signal
import subprocess
import sys
import time

import pytest

from stargan_dist.launch.launcher import Launcher
from stargan_dist.training import signals as module
from stargan_dist.training.signals import LauncherClock, StopSignals
from tests.conftest import PATIENCE_SECONDS, ROOT

NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]


@pytest.fixture(autouse=True)
def handled_outside():
    """Handle the signals outside the context: by default they would end the test run."""
    previous = {number: signal.signal(number, lambda *_: None) for number in NUMBERS}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_nothing_is_received_without_a_signal():
    with StopSignals() as signals:
        assert signals.received == 0


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_recorded_and_does_not_interrupt(number):
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == number


def test_the_last_of_several_signals_is_recorded():
    with StopSignals() as signals:
        for number in NUMBERS:
            signal.raise_signal(number)
            assert signals.received == number


def test_the_previous_handlers_are_restored_after_an_exception():
    handled = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: handled.append(number))
    previous = {number: signal.getsignal(number) for number in NUMBERS}
    with pytest.raises(ValueError, match="stop"), StopSignals() as signals:
        assert all(signal.getsignal(number) != previous[number] for number in NUMBERS)
        raise ValueError("stop")
    assert {number: signal.getsignal(number) for number in NUMBERS} == previous
    signal.raise_signal(signal.SIGUSR1)
    assert (handled, signals.received) == ([signal.SIGUSR1], 0)


# Signals arrive after the context, at the exit of the interpreter, and when modules are torn down.
TEARDOWN = """
import atexit, os, signal, sys
from stargan_dist.training.signals import StopSignals
def send_all(kill=os.kill, pid=os.getpid(), numbers=StopSignals.NUMBERS):
    for number in numbers:
        kill(pid, number)
class Last:
    def __del__(self, send_all=send_all):
        send_all()
with StopSignals():
    send_all()
send_all()
atexit.register(send_all)
sys.modules["last"] = Last()
sys.exit(75)
"""


def test_signals_that_are_sent_again_do_not_change_the_exit_code():
    done = subprocess.run(
        [sys.executable, "-c", TEARDOWN], cwd=ROOT, check=False, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == 75


def test_nohup_keeps_its_meaning():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert signals.received == 0


def test_torchrun_forwards_a_hangup_under_nohup_too(monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(module, "find_launcher", lambda: Launcher(os.getppid()))
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert signals.received == signal.SIGHUP


class Patient:
    """A launcher that counts how often it is ended."""

    def __init__(self, patience_seconds):
        self.patience_seconds, self.ended = patience_seconds, 0

    def end(self):
        self.ended += 1
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_launcher_is_ended_before_it_kills(number, caplog):
    launcher = Patient(0.5)
    clock = LauncherClock(launcher)
    signal.raise_signal(number)
    clock._thread.join(PATIENCE_SECONDS)
    clock.close()
    assert launcher.ended == 1
    assert "kills what is not saved within 0.5 s" in caplog.text


def test_a_launcher_is_not_ended_without_need():
    """Without a signal, of a signal that it does not forward, or if the run has ended in time."""
    launcher = Patient(0.0)
    clock = LauncherClock(launcher)
    signal.raise_signal(signal.SIGUSR1)
    time.sleep(0.1)
    clock.close()
    launcher.patience_seconds = 3600.0
    clock = LauncherClock(launcher)
    signal.raise_signal(signal.SIGTERM)
    clock.close()
    assert launcher.ended == 0
