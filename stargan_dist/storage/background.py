"""Reads in the background, many at a time, without retries.

They run in the event loop that fsspec has in each process, so the latencies of many requests pass
at the same time. A read that fails is left to `read_range`, which is patient.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

from fsspec.asyn import AsyncFileSystem, get_loop

from stargan_dist.storage import traffic
from stargan_dist.storage.reading import filesystem, is_far, parent
from stargan_dist.storage.retry import current_config

MAX_REQUESTS = 64  # of a process at a time
S3FS_PROTOCOL = ("s3", "s3a")  # of s3fs' filesystem

T = TypeVar("T")


class Range(NamedTuple):
    """The bytes [begin, end) of a file."""

    url: str
    begin: int
    end: int


RangeReader = Callable[[Range], Awaitable[bytes]]


@cache
def _slots(_loop: asyncio.AbstractEventLoop) -> asyncio.Semaphore:
    return asyncio.Semaphore(MAX_REQUESTS)


def start(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine in the background."""
    return asyncio.run_coroutine_threadsafe(coroutine, get_loop())


async def read_ranges(ranges: Iterable[Range]) -> list[bytes | None]:
    """Read ranges at the same time, in a coroutine for `start`.

    Requests wait for each other in the order in which they were made.

    Returns:
        The bytes of each range, possibly fewer or more than requested; None if it cannot be read.
    """
    parts = [*ranges]
    # To find the filesystem of a URL takes as long as a quarter of a request.
    readers = {folder: _range_reader(folder) for folder in {parent(p.url) for p in parts}}
    reads = (_read(readers[parent(part.url)], part) for part in parts)
    results = await asyncio.gather(*reads, return_exceptions=True)
    return [result if isinstance(result, bytes) else None for result in results]


async def _read(read: RangeReader, part: Range) -> bytes:
    async with _slots(asyncio.get_running_loop()):
        data = await _in_time(read(part), current_config().timeout_seconds)
    traffic.count(data)
    return data


async def _in_time(reading: Awaitable[bytes], seconds: float) -> bytes:
    """Cancel this task after a timeout. `wait_for` takes a tenth of a request: a second task."""
    task = asyncio.current_task()
    assert task
    timer = asyncio.get_running_loop().call_later(seconds, task.cancel)
    try:
        return await reading
    finally:
        timer.cancel()


def import_client(url: str) -> None:
    """Import what reads ranges of a URL.

    Call it before workers are forked: one that is forked while a thread imports a module waits for
    that import forever, if it needs the module too.
    """
    if is_far(url):
        _range_reader(url)


def _range_reader(url: str) -> RangeReader:
    """Return the function that reads ranges of the filesystem of a URL."""
    fs, _ = filesystem(url)
    read = _file_reader(fs)
    return lambda part: read(fs._strip_protocol(part.url), start=part.begin, end=part.end)


def _file_reader(fs: Any) -> Callable[..., Awaitable[bytes]]:
    if not isinstance(fs, AsyncFileSystem):
        return partial(asyncio.to_thread, fs.cat_file)
    # The packages of these two may not be installed.
    if fs.protocol == S3FS_PROTOCOL:
        from stargan_dist.storage import signed

        return partial(signed.read_range, fs)
    if "http" in fs.protocol:
        from stargan_dist.storage import http_files

        return partial(http_files.read_range, fs)
    read: Callable[..., Awaitable[bytes]] = fs._cat_file
    return read
