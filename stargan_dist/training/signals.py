"""Signals that ask a run to save and stop."""

import logging
import os
import select
import signal
import threading
import time
from types import FrameType
from typing import Any

from stargan_dist.launch.launcher import PATIENCE_VARIABLE, Launcher, find_launcher

FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # by torchrun, which then kills
PATIENCE_SHARE = 0.8  # of the launcher's patience, after which ranks that still save end it

logger = logging.getLogger(__name__)


class StopSignals:
    """Record signals from a person, a scheduler or a launcher while the context is open.

    At the end of the context, the signals are ignored until the process has ended: the run is
    saved, and a signal that is sent again must not change its exit code. After an exception, the
    previous handlers are restored.

    Attributes:
        received: number of the last signal; 0: none.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)

    def __init__(self) -> None:
        self.received = 0
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._clock: LauncherClock | None = None

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.received = number

    def __enter__(self) -> "StopSignals":
        launcher = find_launcher()
        # torchrun handles SIGHUP under nohup, too. Only without it, nohup keeps its meaning.
        nohup = not launcher and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        numbers = [n for n in self.NUMBERS if not (nohup and n == signal.SIGHUP)]
        self._previous_handlers = {n: signal.signal(n, self._record) for n in numbers}
        if launcher and launcher.kills_ranks and os.environ["LOCAL_RANK"] == "0":
            self._clock = LauncherClock(launcher)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler if kind else signal.SIG_IGN)
        if self._clock:
            self._clock.close()


class LauncherClock:
    """End a launcher before it kills the ranks, which may still be in a step or saving.

    A thread of its own notices a signal at once. The main thread does not while it is in a long
    call, such as a backward pass.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.launcher, self._seconds = launcher, PATIENCE_SHARE * launcher.patience_seconds
        self._signals, self._sink = os.pipe()
        os.set_blocking(self._sink, False)  # required of a wakeup descriptor
        self._previous = signal.set_wakeup_fd(self._sink, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="launcher-clock", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._signals], [], [], left)[0]:
                self._end_launcher()
                return
            numbers = set(os.read(self._signals, 64))
            if 0 in numbers:
                return
            if numbers & FORWARDED and deadline is None:
                deadline = time.monotonic() + self._seconds

    def _end_launcher(self) -> None:
        patience = f"{self.launcher.patience_seconds:g} s"
        if self.launcher.end():
            logger.warning(
                "ended the launcher, which kills what is not saved within %s; the ranks save and "
                "exit by themselves (%s in its environment makes it wait longer)",
                patience, PATIENCE_VARIABLE,
            )  # fmt: skip

    def close(self) -> None:
        """Stop the thread."""
        signal.set_wakeup_fd(self._previous)
        os.write(self._sink, b"\0")
        self._thread.join()
        os.close(self._signals)
        os.close(self._sink)
