"""Log lines: their format, and the standard stream that they go to."""

import logging
import re
import time

import pytest

from stargan_dist.console.logs import setup_logging

LOGGER = logging.getLogger("stargan_dist.training.some_module")


@pytest.mark.parametrize(
    ("level", "stream"),
    [("INFO", "out"), ("WARNING", "err"), ("ERROR", "err"), ("CRITICAL", "err")],
)
def test_progress_goes_to_stdout_and_warnings_to_stderr(capsys, level, stream):
    setup_logging()
    LOGGER.log(logging.getLevelName(level), "replaced %d samples", 2)
    captured = capsys.readouterr()
    other = "err" if stream == "out" else "out"
    pattern = r"\d\d:\d\d:\d\d rank \d+  replaced 2 samples\n"
    assert re.fullmatch(pattern, getattr(captured, stream))
    assert getattr(captured, other) == ""


@pytest.mark.parametrize("rank", ["3", None])
def test_a_line_has_the_local_time_and_the_rank_of_the_launcher(capsys, monkeypatch, rank):
    """The rank is 0 without a launcher."""
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    setup_logging()
    record = LOGGER.makeRecord(LOGGER.name, logging.INFO, "", 0, "step %d/%d", (20, 820), None)
    record.created = 1_700_000_000.5
    LOGGER.handle(record)
    local_time = time.strftime("%H:%M:%S", time.localtime(1_700_000_000))
    assert capsys.readouterr().out == f"{local_time} rank {rank or 0}  step 20/820\n"


def test_debug_records_are_not_printed(capsys):
    setup_logging()
    LOGGER.debug("details")
    assert capsys.readouterr() == ("", "")


def test_lines_are_printed_once_after_a_second_setup_and_beside_other_handlers(capsys, caplog):
    """Libraries may add handlers to the root logger. caplog does too."""
    setup_logging()
    setup_logging()
    LOGGER.info("step")
    LOGGER.warning("replaced")
    captured = capsys.readouterr()
    assert (captured.out.count("step"), captured.err.count("replaced")) == (1, 1)
    assert caplog.messages == []
