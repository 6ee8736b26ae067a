"""Fetch the samples of the next batches of a loader process before it needs them.

The order is known beforehand (data/order.py). A far store answers after tens of milliseconds, so a
process that requests one sample at a time waits most of the time. Here the ranges of several
batches are under way at once. What cannot be fetched this way is left to `ShardReader.read`, with
its retries: the batches do not depend on what was fetched ahead.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

from torch.utils.data import Dataset, get_worker_info

from stargan_dist import storage
from stargan_dist.data.cache_filler import CacheFiller
from stargan_dist.data.fetch import Fetched, Wanted, fetch
from stargan_dist.data.stream import LoaderOutput, Slots

MAX_BATCHES = 16  # that are under way, beside the one that is needed now
MAX_STARTED = 2  # with each batch that is loaded: the first one must not wait for all others


NOTHING: Future[Fetched] = Future()
NOTHING.set_result({})


class ReadAhead(Dataset[LoaderOutput]):
    """Slots of training whose samples are fetched ahead. Picklable and fork-safe.

    Args:
        slots: the slots.
        end: number of the first slot that is not needed any more.
        limit_bytes: bound of the samples that are fetched or under way for later batches. They
            are estimated by the mean size of a shard's samples.
    """

    def __init__(self, slots: Slots, end: int, limit_bytes: int) -> None:
        self.slots, self.end, self.limit_bytes = slots, end, limit_bytes
        self._pid = 0
        self._fillers: list[CacheFiller] = []
        # First slot of a batch -> its samples, and their estimated bytes.
        self._started: dict[int, tuple[Future[Fetched], int]] = {}

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_started": {}, "_pid": 0, "_fillers": []}

    def __getitems__(self, numbers: list[int]) -> list[LoaderOutput]:
        fetched = self._advance(numbers)
        for reader in self.slots.readers:
            reader.fetched = {
                (shard, number): data
                for (owner, shard, number), data in fetched.items()
                if owner == id(reader)
            }
        ahead_bytes = self._ahead_bytes()
        return [self.slots[number]._replace(ahead_bytes=ahead_bytes) for number in numbers]

    def _ahead_bytes(self) -> int:
        return sum(size for _, size in self._started.values())

    def _advance(self, numbers: Sequence[int]) -> Fetched:
        """Start this batch, unless it is under way, and later ones. Returns its samples."""
        is_first = self._pid != os.getpid()
        if is_first or numbers[0] not in self._started:
            self.close()
            self._pid = os.getpid()
            self._start(numbers)
        if is_first:  # after the requests: names of ten thousand shards take 0.1 s
            self._fillers = self._start_fillers()
        for filler in self._fillers:
            filler.slot = numbers[0]
        future, _ = self._started.pop(numbers[0])
        for later in self._later(numbers):
            if self._ahead_bytes() >= self.limit_bytes:
                break
            self._start(later)
        return future.result()

    def _start_fillers(self) -> list[CacheFiller]:
        """Start to fill the cache, if there is one: all readers share it."""
        caches = [reader.cache for reader in self.slots.readers if reader.cache]
        fillers = [CacheFiller(self.slots, cache) for cache in caches[:1]]
        for filler in fillers:
            filler.start()
        return fillers

    def _later(self, numbers: Sequence[int]) -> Iterable[list[int]]:
        """Return the next batches of this process that are not under way, at most MAX_STARTED."""
        worker = get_worker_info()
        stride = self.slots.batch_size * (worker.num_workers if worker else 1)
        begins = range(numbers[0] + stride, self.end, stride)[:MAX_BATCHES]
        missing = [begin for begin in begins if begin not in self._started]
        return [[n + begin - numbers[0] for n in numbers] for begin in missing[:MAX_STARTED]]

    def _start(self, numbers: Sequence[int]) -> None:
        wanted = [
            Wanted(reader, reader.shard(location), location.sample)
            for reader, location in dict.fromkeys(self.slots.samples(numbers))
            if reader.is_far
        ]
        missing = [w for w in wanted if not (w.reader.is_cached(w.shard) and w.has_table)]
        size = sum(w.shard.mean_sample_bytes for w in missing)
        self._started[numbers[0]] = storage.start(fetch(missing)) if missing else NOTHING, size

    def close(self) -> None:
        """Cancel what is under way."""
        for future, _ in self._started.values():
            future.cancel()
        self._started.clear()
