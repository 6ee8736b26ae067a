"""Children of a plan: exit codes, and signals that are passed on to them."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from stargan_dist.errors import STOPPED
from stargan_dist.launch.children import SIGNALS, Children, launcher
from tests.conftest import ROOT
from tests.helpers.processes import wait_for_end

# Signals its parent with the number in {0}, and ends as {1} says when the signal is passed on.
ANSWERS = """
import os, signal, time
def stop(*_):
    {1}
signal.signal({0}, stop)
os.kill(os.getppid(), {0})
time.sleep(60)
"""


def run(children, program):
    return children.run([sys.executable, "-c", program])


@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise SystemExit(3)", 3)])
def test_the_exit_code_of_a_child_is_returned(end, code):
    with Children() as children:
        assert run(children, end) == code
        assert run(children, "raise SystemExit(2)") == 2  # it may fail, and others follow


def test_a_child_that_a_signal_ends_has_the_exit_code_of_a_shell():
    with Children() as children:
        assert run(children, "import os; os.kill(os.getpid(), 9)") == 128 + 9


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_passed_on_and_no_child_follows(number):
    signal.signal(number, signal.SIG_DFL)  # also under nohup
    with Children() as children:
        assert run(children, ANSWERS.format(int(number), "os._exit(75)")) == STOPPED
        assert children.received == [number]
        assert run(children, "raise SystemExit(3)") == STOPPED  # it did not start
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("signal.signal({0}, signal.SIG_DFL); os.kill(os.getpid(), {0})", STOPPED),
        ("os._exit(0)", STOPPED),  # it had just finished, and others would follow
        ("os._exit(2)", 2),
        ("os.kill(os.getpid(), 9)", 128 + 9),
    ],
)
def test_after_a_signal_a_failure_keeps_its_exit_code(end, code):
    number = int(signal.SIGTERM)
    with Children() as children:
        assert run(children, ANSWERS.format(number, end.format(number))) == code


def test_under_nohup_a_closed_terminal_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Children():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_child_is_stopped_when_its_parent_is_killed():
    program = "import time; print('ready', flush=True); time.sleep(60)"
    code = (
        "import sys\nfrom stargan_dist.launch.children import Children\n"
        f"with Children() as children: children.run([sys.executable, '-c', {program!r}])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, env=dict(os.environ)
    ) as parent:
        assert parent.stdout.readline() == b"ready\n"
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    began = time.monotonic()
    assert wait_for_end([child]) == []
    assert time.monotonic() - began < 30  # it would have slept for 60 s


def test_several_processes_are_started_by_the_launcher_that_keeps_exit_codes():
    assert launcher(1) == [sys.executable]
    words = launcher(3)
    assert words[1:3] == ["-m", "stargan_dist.launch"]
    assert words[words.index("--num_processes") + 1] == "3"
