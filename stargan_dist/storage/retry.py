"""How URLs are reached: options of their protocols, and patience with faults that may pass.

What is still wrong after the configured tries is an OSError, whatever the protocol calls it.
"""

import logging
import threading
from collections.abc import Callable
from concurrent import futures
from functools import partial
from typing import Any, TypeVar

import fsspec
import tenacity
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

from stargan_dist.config import StorageConfig
from stargan_dist.errors import UserError

LONGEST_WAIT_SECONDS = 30
# What no second try mends.
PERMANENT = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError,
    ValueError, TypeError, ImportError, NotImplementedError,
)  # fmt: skip

T = TypeVar("T")

logger = logging.getLogger(__name__)


_config = StorageConfig()


def current_config() -> StorageConfig:
    """How this process reaches URLs."""
    return _config


def configure(config: StorageConfig) -> None:
    """Reach URLs in this way from now on, in this process.

    Options that were given before (by the environment, by an earlier call) stay.
    """
    global _config  # noqa: PLW0603 - of the process, as fsspec's own configuration is
    _config = config
    for protocol, options in config.options.items():
        fsspec.config.conf[protocol] = options | fsspec.config.conf.get(protocol, {})


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Call in a thread of its own, which is abandoned when the time is over.

    Raises:
        TimeoutError: it is over.
    """
    future: futures.Future[T] = futures.Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    try:
        return future.result(seconds)
    except futures.TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer for {seconds} s") from error


def with_timeout(fs: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method of a file system, for no longer than a try may last.

    Local files are waited for.

    Raises:
        TimeoutError: it is over.
    """
    seconds = _config.timeout_seconds
    if isinstance(fs, LocalFileSystem):
        return getattr(fs, method)(*args, **kwargs)
    if not isinstance(fs, AsyncFileSystem):
        return _within(seconds, partial(getattr(fs, method), *args, **kwargs))
    try:  # this cancels, and so gives the connection back
        return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=seconds, **kwargs)
    except FSTimeoutError as error:
        raise TimeoutError(f"no answer for {seconds} s") from error


def _unmasked(error: BaseException) -> BaseException:
    """The cause of an error, where fsspec's HTTP calls any failure a missing file."""
    cause = error.__cause__
    masked = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return cause if cause and masked and isinstance(error, FileNotFoundError) else error


def _may_pass(error: BaseException) -> bool:
    """Whether another try may mend it."""
    error = _unmasked(error)
    codes = [getattr(error, name, None) for name in ("status", "code", "status_code")]
    refused = any(isinstance(c, int) and 400 <= c < 500 and c not in (408, 429) for c in codes)
    return not (refused or isinstance(error, PERMANENT))


def _tell(state: tenacity.RetryCallState) -> None:
    assert state.outcome and state.next_action
    reason = _one_line(state.outcome.exception())
    logger.warning("%s; trying again in %.1f s", reason, state.next_action.sleep)


def _one_line(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def with_retries(function: Callable[[], T]) -> T:
    """Call, and again after growing waits while it fails in a way that may pass.

    Raises:
        OSError: it still fails.
    """
    again = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_config.tries),
        wait=tenacity.wait_random_exponential(_config.wait_seconds, LONGEST_WAIT_SECONDS),
        retry=tenacity.retry_if_exception(_may_pass),
        before_sleep=_tell,
        reraise=True,
    )
    try:
        return again(function)
    except Exception as error:
        if isinstance(error, FileNotFoundError) and _may_pass(error):
            raise OSError(f"{_unmasked(error)}") from error
        if isinstance(error, OSError | UserError):
            raise
        raise OSError(_one_line(error)) from error  # a protocol's own error
