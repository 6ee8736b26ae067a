"""Trainings as children of this process, one after the other, with the signals that it receives.

A training that is stopped by a signal saves its state. The same command resumes it.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from stargan_dist.errors import STOPPED
from stargan_dist.launch.launcher import PR_SET_PDEATHSIG
from stargan_dist.launch.node_agent import shell_code

PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # on Linux only
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def launcher(processes: int) -> list[str]:
    """Return the first words of a command that starts a module in a number of processes."""
    if processes == 1:
        return [sys.executable]
    counts = ["--num_processes", str(processes), "--num_machines", "1"]
    defaults = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    distributed = ["--multi_gpu", "--main_process_port", "0"]
    return [sys.executable, "-m", "stargan_dist.launch", *distributed, *counts, *defaults]


class Children:
    """Context in which commands run one after the other, and signals are passed on to them.

    Their output passes through.

    Attributes:
        received: the numbers of the signals so far. After the first one no command is started.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Children":
        numbers = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]  # under nohup
        self._handlers = {number: signal.signal(number, self._pass_on) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Run a command to its end.

        Returns:
            Its exit code, 128 + N if signal N ended it; STOPPED if it ended otherwise than with an
            error after a signal that was passed on to it, or did not start because of one.
        """
        if self.received:
            return STOPPED
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # DDP warns on every rank of unused parameters
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **quiet}
        # In a session of its own, so that a Ctrl-C reaches it once: passed on by this process.
        self._child = subprocess.Popen(
            command, env=environment, start_new_session=True,
            preexec_fn=_stop_with_parent,  # noqa: PLW1509  it makes a single system call
        )  # fmt: skip
        if self.received:  # while it started
            self._child.send_signal(self.received[-1])
        code = shell_code(self._child.wait())
        ended_by_it = {128 + number for number in self.received}
        return STOPPED if self.received and code in {0, *ended_by_it} else code

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
        if self._child:
            with suppress(ProcessLookupError):
                self._child.send_signal(number)


def _stop_with_parent() -> None:
    """Let this process receive SIGTERM when its parent dies, of whatever signal."""
    if PRCTL is not None:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)
