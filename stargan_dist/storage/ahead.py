"""Read ranges of files in the background before they are needed, for readers that go in order."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType

from stargan_dist.storage.background import Range, read_ranges, start
from stargan_dist.storage.reading import BLOCK_BYTES, is_far, read_once

FILES_AHEAD = 16  # whole files that are read before they are needed: at most 128 MiB


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


def blocks_of(url: str, size: int) -> list[Range]:
    """Return the blocks of a file of `size` bytes, as `read_blocks` reads them."""
    return [Range(url, begin, begin + BLOCK_BYTES) for begin in range(0, size, BLOCK_BYTES)]


def files_ahead(urls: Iterable[str]) -> Ahead:
    """Return `Ahead` of whole files: of their first blocks. Most files have only one."""
    return Ahead([block for url in urls for block in blocks_of(url, 1)], FILES_AHEAD)
