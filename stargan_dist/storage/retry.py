"""Access to URLs: options of protocols, timeouts, and retries of transient faults.

A fault that outlasts the configured tries is an OSError, whichever error the protocol raises.
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
from stargan_dist.errors import PermanentError, UserError, may_pass

LONGEST_WAIT_SECONDS = 30
# Errors of protocols' packages that are not retried, by name: the packages may not be installed.
PERMANENT_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")

T = TypeVar("T")

logger = logging.getLogger(__name__)

_config = StorageConfig()


def current_config() -> StorageConfig:
    """Return the storage configuration of this process."""
    return _config


def configure(config: StorageConfig) -> None:
    """Set the storage configuration of this process.

    Protocol options that are set already (by the environment, by an earlier call) take precedence.
    """
    global _config  # noqa: PLW0603 - global to the process, as fsspec's own configuration is
    _config = config
    for protocol, options in config.options.items():
        fsspec.config.conf[protocol] = options | fsspec.config.conf.get(protocol, {})


def _call_in_thread(seconds: float, function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, which is abandoned after a timeout.

    Raises:
        TimeoutError: the function did not return in time.
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
    """Call a method of a filesystem with the configured timeout of a try.

    Calls to the local filesystem have no timeout.

    Raises:
        TimeoutError: the method did not return in time.
    """
    seconds = _config.timeout_seconds
    if isinstance(fs, LocalFileSystem):
        return getattr(fs, method)(*args, **kwargs)
    if not isinstance(fs, AsyncFileSystem):
        return _call_in_thread(seconds, partial(getattr(fs, method), *args, **kwargs))
    try:  # a timeout here cancels the call, which releases its connection
        return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=seconds, **kwargs)
    except FSTimeoutError as error:
        raise TimeoutError(f"no answer for {seconds} s") from error


def _real_error(error: BaseException) -> BaseException:
    """Return the cause of an error: fsspec's HTTP reports any failure as a missing file."""
    cause = error.__cause__
    is_fault = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return cause if cause and is_fault and isinstance(error, FileNotFoundError) else error


def _is_transient(error: BaseException) -> bool:
    """Return True if another try may succeed."""
    error = _real_error(error)
    codes = [getattr(error, name, None) for name in ("status", "code", "status_code")]
    refused = any(isinstance(c, int) and 400 <= c < 500 and c not in (408, 429) for c in codes)
    return may_pass(error) and not (refused or type(error).__name__ in PERMANENT_NAMES)


def _log_retry(state: tenacity.RetryCallState) -> None:
    assert state.outcome and state.next_action
    reason = _one_line(state.outcome.exception())
    logger.warning("%s; trying again in %.1f s", reason, state.next_action.sleep)


def _one_line(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def with_retries(function: Callable[[], T]) -> T:
    """Call a function; after a transient fault call it again, with growing waits between tries.

    Raises:
        OSError: the function still fails; PermanentError if another try is useless.
        UserError: as raised by the function.
    """
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_config.tries),
        # Jitter, because all ranks begin to wait at the same moment.
        wait=tenacity.wait_exponential_jitter(
            _config.wait_seconds, LONGEST_WAIT_SECONDS, jitter=_config.wait_seconds / 2
        ),
        retry=tenacity.retry_if_exception(_is_transient),
        before_sleep=_log_retry,
        reraise=True,
    )
    try:
        return retrying(function)
    except Exception as error:
        if isinstance(error, FileNotFoundError) and _is_transient(error):
            raise OSError(f"{_real_error(error)}") from error
        if isinstance(error, OSError | UserError):
            raise
        kind = OSError if _is_transient(error) else PermanentError
        raise kind(_one_line(error)) from error  # an error type of the protocol's own
