import threading

import pytest

from stargan_dist.errors import UserError
from stargan_dist.runs import async_writer as savers
from stargan_dist.runs.async_writer import AsyncWriter


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(savers, "WAIT_SECONDS", 0.0)


def failing(times, written):
    """A write that fails so many times."""

    def write():
        written.append(None)
        if len(written) <= times:
            raise UserError("cannot save: no space left")

    return write


def test_what_is_written_beside_the_training_is_there_after_waiting():
    saver, may, written = AsyncWriter(background=True), threading.Event(), []

    def write():
        assert may.wait(120)
        written.append(1)

    saver.save(write)
    saver.check()
    assert not written  # training goes on
    may.set()
    saver.save(lambda: written.append(2))  # one at a time, in order
    saver.wait()
    assert written == [1, 2]
    saver.close()


def test_a_failed_write_is_told_and_tried_again(capsys):
    saver, written = AsyncWriter(background=True), []
    saver.save(failing(2, written))
    saver.wait()
    saver.close()
    assert len(written) == 3
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert all("cannot save: no space left; training goes on, trying again" in t for t in told)


@pytest.mark.parametrize("then", ["check", "wait", "save"])
def test_a_write_that_fails_for_good_is_not_lost(then):
    saver = AsyncWriter(background=True)
    saver.save(failing(99, []))
    saver._thread.shutdown()
    with pytest.raises(UserError, match="no space left"):
        saver.save(print) if then == "save" else getattr(saver, then)()


def test_a_write_that_fails_while_the_run_ends_is_told(capsys):
    saver = AsyncWriter(background=True)
    saver.save(failing(99, []))
    saver.close()
    assert capsys.readouterr().err.splitlines()[-1] == "cannot save: no space left"


def test_at_once_it_fails_at_once():
    with pytest.raises(UserError):
        AsyncWriter(background=False).save(failing(1, []))
