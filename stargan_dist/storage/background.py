"""Reads in the background, many at a time, without retries.

They run in the event loop that fsspec has in each process, so the latencies of many requests pass
at the same time. A read that fails is left to `read_range`, which is patient.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import Future
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from fsspec.asyn import AsyncFileSystem, get_loop

from stargan_dist.storage.reading import BLOCK_BYTES, filesystem, is_far, parent, read_once
from stargan_dist.storage.retry import current_config

MAX_REQUESTS = 64  # of a process at a time
FILES_AHEAD = 16  # whole files that are read before they are needed: at most 128 MiB

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
        if isinstance(fs, AsyncFileSystem):
            reading = fs._cat_file(path, start=part.begin, end=part.end)
        else:
            reading = asyncio.to_thread(fs.cat_file, path, start=part.begin, end=part.end)
        data: bytes = await asyncio.wait_for(reading, current_config().timeout_seconds)
        return data


class Ahead:
    """Ranges of files that are read in the background before they are needed.

    `read` is used in place of `read_once`. It returns what was read ahead; what failed, was not
    announced, is read a second time or is local it reads itself. So errors and retries are those of
    `read_once`. For one thread. A context that cancels at its end what is under way.

    Args:
        ranges: in the order in which they will be read. Some may be left out.
        limit: ranges that are under way or have arrived, at most.
    """

    def __init__(self, ranges: Sequence[Range], limit: int) -> None:
        self._ranges, self._limit = ranges, limit
        self._numbers = {part: number for number, part in enumerate(ranges)}
        self._started: dict[int, Future[list[bytes | None]]] = {}
        self._serves_ranges = False

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._cancel(len(self._ranges))

    def read(self, url: str, begin: int, end: int) -> bytes:
        """Return the bytes [begin, end) of a file. Raises as `read_once` does."""
        number = self._numbers.pop(Range(url, begin, end), None)
        data = None if number is None else self._take(number)
        if data is None:
            return read_once(url, begin, end)
        if len(data) > end - begin:  # the server sends whole files, of any size
            self._numbers.clear()
            self._cancel(len(self._ranges))
        self._serves_ranges = self._serves_ranges or len(data) == end - begin
        return data

    def _take(self, number: int) -> bytes | None:
        """Return a range if it could be read, and start the next ones."""
        self._cancel(number)
        for later in range(number, min(number + self._limit, len(self._ranges))):
            self._start(later)
        future = self._started.pop(number, None)
        return future.result()[0] if future else None

    def _start(self, number: int) -> None:
        part = self._ranges[number]
        # A server without ranges would send the file once for each of its blocks.
        is_useful = part.begin == 0 or self._serves_ranges
        if number not in self._started and is_useful and is_far(part.url):
            self._started[number] = start(read_ranges([part]))

    def _cancel(self, end: int) -> None:
        """Cancel what is under way of the ranges before a number."""
        for number in [number for number in self._started if number < end]:
            self._started.pop(number).cancel()


def files_ahead(urls: Iterable[str]) -> Ahead:
    """Return `Ahead` of whole files: of their first blocks. Most files have only one."""
    return Ahead([Range(url, 0, BLOCK_BYTES) for url in urls], FILES_AHEAD)
