"""Time between two log lines."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Measure the time between two log lines, and how much of it the loop waits for data."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.waited = 0.0

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Iterate, and count the time until each batch is available."""
        iterator = iter(batches)
        while True:
            begin = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.waited += time.monotonic() - begin
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside the context."""
        begin = time.monotonic()
        yield
        self.began += time.monotonic() - begin

    def lap(self) -> tuple[float, float]:
        """Return the seconds since the last lap and the share of them spent waiting."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        share = self.waited / seconds
        self.began, self.waited = time.monotonic(), 0.0
        return seconds, share
