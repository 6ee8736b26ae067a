"""Reads in the background, many at a time, without retries.

They run in the event loop that fsspec has in each process, so the latencies of many requests pass
at the same time. A read that fails is left to `read_range`, which is patient.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

from fsspec.asyn import AsyncFileSystem, get_loop

from stargan_dist.storage.reading import filesystem, parent
from stargan_dist.storage.retry import current_config

MAX_REQUESTS = 64  # of a process at a time
S3FS_PROTOCOL = ("s3", "s3a")  # of s3fs' filesystem

T = TypeVar("T")


class Range(NamedTuple):
    """The bytes [begin, end) of a file."""

    url: str
    begin: int
    end: int


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
    filesystems = {folder: filesystem(folder)[0] for folder in {parent(p.url) for p in parts}}
    reads = (_read(filesystems[parent(part.url)], part) for part in parts)
    results = await asyncio.gather(*reads, return_exceptions=True)
    return [result if isinstance(result, bytes) else None for result in results]


async def _read(fs: Any, part: Range) -> bytes:
    async with _slots(asyncio.get_running_loop()):
        read = _range_reader(fs)
        reading = read(fs._strip_protocol(part.url), start=part.begin, end=part.end)
        return await asyncio.wait_for(reading, current_config().timeout_seconds)


def _range_reader(fs: Any) -> Callable[..., Coroutine[Any, Any, bytes]]:
    if not isinstance(fs, AsyncFileSystem):
        return partial(asyncio.to_thread, fs.cat_file)
    if fs.protocol == S3FS_PROTOCOL:
        from stargan_dist.storage import signed  # needs aiohttp, which s3fs brings

        return partial(signed.read_range, fs)
    reader: Callable[..., Coroutine[Any, Any, bytes]] = fs._cat_file
    return reader
