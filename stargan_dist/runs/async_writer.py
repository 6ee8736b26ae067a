"""Background writes of checkpoints."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import tenacity

from stargan_dist.errors import OutsideFault

MAX_ATTEMPTS = 5
WAIT_SECONDS = 10.0  # before the second attempt; then 20 and 30: a disk may be full for 90 s
LONGEST_WAIT_SECONDS = 30.0

logger = logging.getLogger(__name__)


class AsyncWriter:
    """Runs one write at a time, in its own thread or in the caller's.

    A failed write is logged and retried, with growing waits. If the last attempt fails in the
    background, the error is raised by the next `check`, `wait` or `save`, or logged by `close`; it
    is never lost.

    Args:
        background: write in a thread.
    """

    def __init__(self, *, background: bool) -> None:
        self._executor = ThreadPoolExecutor(1, "async_writer") if background else None
        self._pending: Future[None] | None = None

    def save(self, write: Callable[[], None]) -> None:
        """Start a write after the previous one has finished.

        Raises:
            UserError: the previous write failed, or this one failed in the foreground.
        """
        self.wait()
        if self._executor is None:
            _write_with_retries(write)
        else:
            self._pending = self._executor.submit(_write_with_retries, write)

    def check(self) -> None:
        """Raise UserError if the pending write has failed. Does not block."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Block until the pending write has finished. Raise UserError if it failed."""
        if self._pending:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Flush the pending write and stop the thread. Log the error if the write failed."""
        if self._executor:
            self._executor.shutdown()
        error = self._pending.exception() if self._pending else None
        if error:
            logger.error("%s", error)


def _write_with_retries(write: Callable[[], None]) -> None:
    tenacity.Retrying(
        stop=tenacity.stop_after_attempt(MAX_ATTEMPTS),
        wait=tenacity.wait_exponential(WAIT_SECONDS, LONGEST_WAIT_SECONDS),
        retry=tenacity.retry_if_exception_type(OutsideFault),
        before_sleep=_log_retry,
        reraise=True,
    )(write)


def _log_retry(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0.0
    logger.warning("%s; retrying in %.0f s", error, wait)
