import threading

import pytest

from stargan_dist.errors import OutsideFault, UserError
from stargan_dist.runs import async_writer
from stargan_dist.runs.async_writer import AsyncWriter


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(async_writer, "WAIT_SECONDS", 0.0)


def failing_write(failures, calls):
    """Return a write that fails the given number of times and records its calls."""

    def write():
        calls.append(None)
        if len(calls) <= failures:
            raise OutsideFault("cannot save: no space left")

    return write


def test_background_writes_run_one_at_a_time_in_order():
    writer, permission, written = AsyncWriter(background=True), threading.Event(), []

    def write():
        assert permission.wait(120)
        written.append(1)

    writer.save(write)
    writer.check()
    assert not written  # training continues
    permission.set()
    writer.save(lambda: written.append(2))
    writer.wait()
    assert written == [1, 2]
    writer.close()


def test_a_failed_background_write_is_logged_and_retried(caplog):
    writer, calls = AsyncWriter(background=True), []
    writer.save(failing_write(2, calls))
    writer.wait()
    writer.close()
    assert len(calls) == 3
    assert len(caplog.messages) == 2
    expected = "cannot save: no space left; retrying in 0 s"
    assert all(message == expected for message in caplog.messages)


@pytest.mark.parametrize("method", ["check", "wait", "save"])
def test_the_next_call_raises_the_error_of_the_last_attempt(method):
    writer = AsyncWriter(background=True)
    writer.save(failing_write(99, []))
    writer._executor.shutdown()
    with pytest.raises(UserError, match="no space left"):
        writer.save(print) if method == "save" else getattr(writer, method)()


def test_closing_logs_the_error_of_the_last_attempt(caplog):
    writer = AsyncWriter(background=True)
    writer.save(failing_write(99, []))
    writer.close()
    assert caplog.messages[-1] == "cannot save: no space left"


def test_a_foreground_write_is_retried_as_well():
    calls = []
    AsyncWriter(background=False).save(failing_write(2, calls))
    assert len(calls) == 3
    with pytest.raises(UserError, match="no space left"):
        AsyncWriter(background=False).save(failing_write(99, []))


def test_a_disk_may_be_full_for_a_minute(monkeypatch):
    waits = []
    monkeypatch.setattr(async_writer, "WAIT_SECONDS", 10.0)
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    with pytest.raises(UserError):
        AsyncWriter(background=False).save(failing_write(99, []))
    assert waits == sorted(waits)
    assert sum(waits) >= 60


def test_a_mistake_is_not_retried():
    writer, calls = AsyncWriter(background=True), []

    def write():
        calls.append(1)
        raise UserError("taken over")

    writer.save(write)
    with pytest.raises(UserError, match="taken over"):
        writer.wait()
    assert len(calls) == 1
