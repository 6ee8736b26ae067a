"""Commands of a try: start, observe, signal and end them.

A command runs in a forked copy of the campaign, which has imported everything: a new interpreter
would spend seconds on imports. A *fresh* command is executed by a new interpreter instead. Under a
launcher the launcher is forked, and the ranks that it starts are new interpreters.
"""

import atexit
import fcntl
import os
import re
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
MARKER = "STARGAN_CAMPAIGN_TRY"
POLL_SECONDS = 0.02
# Processes of a try have this long to end after the command has.
GRACE_SECONDS = 10.0
# Ranks whose launcher was killed have this long to finish their step and save before that.
SAVING_SECONDS = 60.0


def fork(function: Callable[[], object], output: Path | None = None) -> int:
    """Run a function in a forked process with a session of its own; return its id.

    The process ends as an interpreter does: threads are joined and exit handlers run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == 2 else signal.SIG_DFL)
        if output:
            _redirect(output)
        code = _exit_code(function)
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _redirect(output: Path) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, source in ((0, null), (1, handle), (2, handle)):
        os.dup2(source, number)


def _exit_code(function: Callable[[], object]) -> int:
    """Call a function and return its exit code, as an interpreter does."""
    try:
        function()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def execute(argv: Sequence[str], env: dict[str, str], fresh: bool) -> None:
    """Become the command `python ARGV`, in this interpreter or in a new one. Does not return."""
    os.environ |= env
    os.chdir(ROOT)
    if fresh:
        os.execve(sys.executable, [sys.executable, *argv], os.environ)
    words = list(argv)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    sys.exit(0)


class Program:
    """A running command.

    Attributes:
        output: file with everything that its processes print.
        code: the exit code once it has ended (−N: ended by signal N), else None.
        began: when it was started, as `time.time()`.
    """

    def __init__(
        self, argv: Sequence[str], env: dict[str, str], output: Path, *, fresh: bool = False
    ) -> None:
        self.output, self.marker = output, env[MARKER]
        self.code: int | None = None
        self.began = time.time()
        output.touch()
        self.pid = fork(lambda: execute(argv, env, fresh), output)

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def last_line_time(self) -> float:
        """Time of the last output, as `time.time()`."""
        return self.output.stat().st_mtime

    def poll(self) -> bool:
        """Return True once the command has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self, seconds: float) -> bool:
        """Wait for the end; return False if the time is over before."""
        return self.wait_for(lambda: False, seconds) or self.poll()

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for a condition; return False if the command ends or the time is over before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.poll():
                return False
            time.sleep(POLL_SECONDS)
        return False

    def step(self) -> int:
        """Return the last logged step, 0 before the first."""
        steps = re.findall(r"  step (\d+)/\d+ \(", self.text())
        return int(steps[-1]) if steps else 0

    def wait_for_step(self, step: int, seconds: float) -> bool:
        return self.wait_for(lambda: self.step() >= step, seconds)

    # The processes.

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the command, also those whose parents have ended."""
        return [p for p in psutil.process_iter() if _belongs(p, self.pid, self.marker)]

    def ranks(self) -> list[psutil.Process]:
        """Return the training processes: those of the launcher, or the command itself."""
        try:
            main = psutil.Process(self.pid)
            launched = [p for p in main.children() if "RANK" in p.environ()]
        except psutil.Error:
            return []
        return launched or [main]

    def workers(self) -> list[psutil.Process]:
        """Return the loader processes, and the server of those that are forked by one.

        Not Python's resource tracker: if that is killed, the next one prints tracebacks of its own.
        """
        ranks = self.ranks()
        below = [p for rank in ranks for p in rank.children(recursive=True) if rank.is_running()]
        return [p for p in below if "resource_tracker" not in _command_line(p)]

    def left_alive(self) -> list[str]:
        """Return the command lines of processes that outlive the command by GRACE_SECONDS.

        Ranks that outlive their launcher have SAVING_SECONDS first.
        """
        deadline = time.monotonic() + SAVING_SECONDS
        while any(map(_is_launched_rank, self.processes())) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return [_command_line(process) for process in left]

    def end(self) -> None:
        """Kill all processes."""
        for process in self.processes():
            send(process.pid, signal.SIGKILL)
        self.wait(GRACE_SECONDS)


def _is_launched_rank(process: psutil.Process) -> bool:
    """Return True for a rank that a launcher started; its workers inherit its variables."""
    try:
        return "RANK" in process.environ() and os.getsid(process.pid) == process.pid
    except (psutil.Error, OSError):
        return False


def _belongs(process: psutil.Process, session: int, marker: str) -> bool:
    """Return whether a process is of a session, or has the marker in its environment."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if os.getsid(process.pid) == session:
            return True
        return process.environ().get(MARKER) == marker
    except (psutil.Error, OSError):
        return False


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:100]
    except psutil.Error:
        return "(ended)"


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
