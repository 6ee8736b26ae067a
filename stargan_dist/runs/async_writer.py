"""Writing checkpoints beside the training."""

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import tenacity

from stargan_dist.errors import UserError

TRIES = 3
WAIT_SECONDS = 10.0


class AsyncWriter:
    """Runs one write at a time, in a thread of its own or at once.

    A write that fails in the background is told and tried again; one that fails for good raises
    at the next `check`, `save` or `close`, so it is never lost.
    """

    def __init__(self, *, background: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "saver") if background else None
        self._pending: Future[None] | None = None

    def save(self, write: Callable[[], None]) -> None:
        """Begin a write, once the one before is done.

        Raises:
            UserError: that one failed, or this one, which is not in the background.
        """
        self.wait()
        if self._thread is None:
            write()
        else:
            self._pending = self._thread.submit(_persist, write)

    def check(self) -> None:
        """Raises UserError if a write has failed for good. Waits for nothing."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when all is written; raises UserError if it cannot be."""
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Have the thread end. What it still writes is finished first, or told to have failed."""
        if self._thread:
            self._thread.shutdown()
        error = self._pending.exception() if self._pending else None
        if error:
            print(error, file=sys.stderr, flush=True)


def _persist(write: Callable[[], None]) -> None:
    tenacity.Retrying(
        stop=tenacity.stop_after_attempt(TRIES),
        wait=tenacity.wait_fixed(WAIT_SECONDS),
        retry=tenacity.retry_if_exception_type(UserError),
        before_sleep=_tell,
        reraise=True,
    )(write)


def _tell(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    told = f"{error}; training goes on, trying again in {WAIT_SECONDS:.0f} s"
    print(told, file=sys.stderr, flush=True)
