import io
import re
from contextlib import redirect_stderr

import pytest

from stargan_dist.console.progress import clock, progress_bar

LINE = re.compile(
    r"(?P<description>.+)  (?P<done>\d+/\d+)  (?: *\d+\.\d\d|\?) images/s  eta [\d:?]+"
)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


STREAMS = pytest.mark.parametrize("stream", [io.StringIO, Terminal])


def work(stream, updates=4, **options):
    """Return what work of `updates` updates prints to a stream."""
    with (
        redirect_stderr(stream()) as stderr,
        progress_bar(2 * updates, "images", description="packing", **options) as progress,
    ):
        for _ in range(updates):
            progress.update(2)
    return stderr.getvalue()


def parse(text):
    """Description and count of each line, requiring that all lines are plain."""
    assert text.endswith("\n")
    matches = [LINE.fullmatch(line) for line in text.split("\n")[:-1]]
    assert all(matches), text
    return [(match["description"], match["done"]) for match in matches]


def test_a_log_gets_a_plain_line_for_each_interval():
    counts = ["0/8", "2/8", "4/8", "6/8", "8/8", "8/8"]
    lines = parse(work(io.StringIO, every_seconds=0))
    assert lines == [("packing", count) for count in counts]


def test_a_log_gets_only_the_last_line_if_the_work_ends_within_the_first_interval():
    assert parse(work(io.StringIO, every_seconds=3600)) == [("packing", "8/8")]


def test_a_terminal_gets_a_bar_that_is_redrawn():
    text = work(Terminal)
    first, *_, last = text.split("\r")[1:]
    assert first.startswith("packing:   0%|")
    assert first.endswith("| 0/8 [00:00<?, ? images/s]")
    assert last.startswith("packing: 100%|")
    assert re.search(r"\| 8/8 \[\d\d:\d\d<00:00, .* images/s\]\n$", last)
    assert text.count("\n") == 1


@STREAMS
def test_brief_work_prints_nothing(stream, monkeypatch):
    monkeypatch.setattr("stargan_dist.console.progress.BAR_SECONDS", 3600)
    assert work(stream, brief=True, every_seconds=3600) == ""


@STREAMS
def test_brief_work_that_takes_longer_is_shown_to_its_end(stream, monkeypatch):
    monkeypatch.setattr("stargan_dist.console.progress.BAR_SECONDS", 0)
    text = work(stream, brief=True, every_seconds=0)
    assert " 2/8 " in text
    assert " 8/8 " in text.replace("\r", "\n").splitlines()[-1]
    assert text.endswith("\n")


@STREAMS
def test_silent_ranks_print_nothing(stream):
    assert work(stream, shown=False, every_seconds=0) == ""


def test_silent_ranks_may_change_the_description():
    with progress_bar(2, "images", description="a", shown=False) as progress:
        progress.set_description_str("b", refresh=False)


def test_a_new_description_appears_with_the_next_line():
    with (
        redirect_stderr(io.StringIO()) as stderr,
        progress_bar(2, "images", description="a", every_seconds=0) as progress,
    ):
        progress.update(1)
        progress.set_description_str("b → c, task 2/3", refresh=False)
        progress.update(1)
    changed = ("b → c, task 2/3", "2/2")
    assert parse(stderr.getvalue()) == [("a", "0/2"), ("a", "1/2"), changed, changed]


def test_nested_work_prints_plain_lines_to_a_log():
    with (
        redirect_stderr(io.StringIO()) as stderr,
        progress_bar(1, "images", description="outer", every_seconds=0) as outer,
    ):
        with progress_bar(1, "images", description="inner", every_seconds=0) as inner:
            inner.update(1)
        outer.update(1)
    descriptions = [description for description, _ in parse(stderr.getvalue())]
    assert descriptions == ["outer", *["inner"] * 3, *["outer"] * 2]


def test_a_failure_leaves_the_last_state():
    with (
        redirect_stderr(io.StringIO()) as stderr,
        pytest.raises(ValueError, match="broken"),
        progress_bar(4, "images", description="packing") as progress,
    ):
        progress.update(3)
        raise ValueError("broken")
    assert parse(stderr.getvalue()) == [("packing", "3/4")]


def test_no_work_prints_a_last_line():
    assert parse(work(io.StringIO, updates=0)) == [("packing", "0/0")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (1e6, "277:46:40")]
)
def test_clock_prints_hours_minutes_and_seconds(seconds, text):
    assert clock(seconds) == text
