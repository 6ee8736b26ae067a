"""Signals that ask a run to save and stop."""

import signal
from types import FrameType
from typing import Any


class StopSignals:
    """Record signals from a person or a scheduler while the context is open.

    Attributes:
        received: number of the last signal; 0: none.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = 0
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.received = number

    def __enter__(self) -> "StopSignals":
        self._previous_handlers = {n: signal.signal(n, self._record) for n in self.NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
