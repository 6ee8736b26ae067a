"""Reads in the background, many at a time, without retries.

They run in the event loop that fsspec has in each process, so the latencies of many requests pass
at the same time. A read that fails is left to `read_range`, which is patient.
"""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from concurrent.futures import Future
from functools import cache
from typing import Any, NamedTuple, TypeVar

from fsspec.asyn import AsyncFileSystem, get_loop

from stargan_dist.storage import traffic
from stargan_dist.storage.reading import filesystem, parent
from stargan_dist.storage.retry import current_config

MAX_REQUESTS = 64  # of a process at a time

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
        path = fs._strip_protocol(part.url)
        options = {"timeout": None} if "http" in fs.protocol else {}  # ours is enough, and cheap
        if isinstance(fs, AsyncFileSystem):
            reading = fs._cat_file(path, start=part.begin, end=part.end, **options)
        else:
            reading = asyncio.to_thread(fs.cat_file, path, start=part.begin, end=part.end)
        data = await _in_time(reading, current_config().timeout_seconds)
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
