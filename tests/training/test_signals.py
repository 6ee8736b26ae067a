"""Signals that ask a run to save and stop."""

import os
import signal

import pytest

from stargan_dist.training.signals import StopSignals

NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


@pytest.fixture(autouse=True)
def ignored_outside():
    """Ignore the signals outside the context: by default they would end the test run."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in NUMBERS}
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


def test_the_previous_handlers_are_restored_after_an_exception_too():
    handled = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: handled.append(number))
    previous = {number: signal.getsignal(number) for number in NUMBERS}
    with pytest.raises(ValueError, match="stop"), StopSignals() as signals:
        assert all(signal.getsignal(number) != previous[number] for number in NUMBERS)
        raise ValueError("stop")
    assert {number: signal.getsignal(number) for number in NUMBERS} == previous
    signal.raise_signal(signal.SIGUSR1)
    assert (handled, signals.received) == ([signal.SIGUSR1], 0)
