"""Download shards into the cache before training needs them.

The order of the samples is known beforehand (data/order.py), and so is when each shard is read
next. A thread keeps those shards in the cache that are read first, as many as fit. Samples of
other shards are fetched by their byte ranges meanwhile: nobody waits for a whole shard.
"""

import atexit
import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import accumulate
from multiprocessing.util import Finalize
from typing import NamedTuple

from filelock import FileLock, Timeout

from stargan_dist import storage
from stargan_dist.data.cache import CachedFile, CacheFault, ShardCache
from stargan_dist.data.index import Shard
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.stream import Slots
from stargan_dist.errors import PermanentError, UserError

POLL_SECONDS = 1.0  # for the lock
# A plan for ten thousand shards takes 0.04 to 0.09 s of a loader process. The next one is made
# after so many times its duration.
PLAN_TIMES = 20
MIN_PLAN_SECONDS = 0.25
BLOCKS_AHEAD = 4  # of 8 MiB, of a shard that is being downloaded
STOP_SECONDS = 2.0
RETRY_SECONDS = 600.0  # after which a failed download is tried again
# For so long after a read, a file of another training counts as in use.
OTHERS_SECONDS = 600.0
# The processes of a training do not leave a window of shards at the same moment.
LATE_SECONDS = 60.0

logger = logging.getLogger(__name__)


class File(NamedTuple):
    """A shard, and its name in the cache."""

    name: str
    url: str
    shard: Shard


class _StoppedError(PermanentError):
    """The process ends during a download."""


class CacheFiller:
    """Fills a cache for a training. One process of a node at a time downloads.

    Args:
        slots: slots of the training.
        cache: the cache of its readers.

    Attributes:
        slot: the slot that this process loads now.
    """

    def __init__(self, slots: Slots, cache: ShardCache) -> None:
        self.slots, self.cache, self.slot = slots, cache, 0
        self._files: dict[tuple[ShardReader, Shard], File] = {}
        for reader, shard in slots.next_shards(0):
            url = storage.join(reader.url, shard.name)
            self._files[reader, shard] = File(cache.name(url, shard), url, shard)
        self._order: dict[str, int] = {}  # name of a file -> its number among those read next
        self._kept: set[str] = set()  # names of the files that are read next, as many as fit
        # Name of a file that this training downloaded -> time at which it was last kept.
        self._own: dict[str, float] = {}
        self._downloading = ""  # name of the file that this process is downloading
        self._failed: dict[str, float] = {}  # name of a file -> time of the failure
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fill-cache", daemon=True)

    def start(self) -> None:
        """Start the thread. At the exit of this process it removes an incomplete download."""
        self._thread.start()
        Finalize(self, self.stop, exitpriority=10)  # at the exit of a loader process
        atexit.register(self.stop)  # of a rank: before fsspec closes its connections

    def stop(self) -> None:
        """Stop the thread, also in the middle of a download."""
        self._stopped.set()
        self._thread.join(STOP_SECONDS)
        if self._downloading:  # the thread waits for the store, and ends with this process
            self.cache.remove_partial(self._downloading)

    def _run(self) -> None:
        names = sorted(file.name for file in self._files.values())
        training = hashlib.sha256(repr((names, self.slots.seed)).encode())
        lock = FileLock(self.cache.folder / f".lock-fill-{training.hexdigest()[:16]}", timeout=0)
        while not self._stopped.wait(POLL_SECONDS):  # the first batches come first
            try:
                with lock:
                    self._fill()
            except Timeout:  # another process fills
                continue
            except OSError as error:  # of the folder, its locks or its list: no shard is at fault
                logger.warning("the cache %s is not filled: %s", self.cache.folder, error)
                self._stopped.wait(RETRY_SECONDS)

    def _fill(self) -> None:
        self.cache.remove_abandoned()
        while not self._stopped.is_set():
            begun = time.monotonic()
            files = self.missing_files()
            planned = time.monotonic()
            valid_seconds = max(MIN_PLAN_SECONDS, PLAN_TIMES * (planned - begun))
            for file in files:
                self.download(file)
                if self._stopped.is_set() or time.monotonic() - planned > valid_seconds:
                    break
            else:
                self._stopped.wait(valid_seconds)

    def next_files(self) -> list[File]:
        """Return all files in the order in which they are read next."""
        return [self._files[key] for key in self.slots.next_shards(self.slot)]

    def missing_files(self) -> list[File]:
        """Return the files to be downloaded: of those that are read next, as many as fit."""
        present = self.cache.files()
        names = {file.name for file in present}
        self._own |= dict.fromkeys(self._kept & self._own.keys(), time.time())
        used_by_others = {f.name: f.bytes for f in present if self._is_used_by_others(f)}
        files = self.next_files()
        is_first = not self._order
        self._order = {file.name: number for number, file in enumerate(files)}
        sizes = (0 if f.name in used_by_others else f.shard.bytes for f in files)
        room_bytes = max(0, self.cache.limit_bytes - sum(used_by_others.values()))
        kept = files[: how_many_fit(sizes, room_bytes)]
        self._kept = {file.name for file in kept}
        if is_first:  # an earlier process of this training may have downloaded them
            self._own = dict.fromkeys(self._kept & names, time.time())
        absent = self._kept - names - self._recently_failed()
        return [file for file in kept if file.name in absent]

    def _is_used_by_others(self, file: CachedFile) -> bool:
        """Return True for a file that another training, maybe of the same dataset, reads again."""
        own_use_ended = self._own.get(file.name, 0.0) + LATE_SECONDS
        return file.in_progress or file.used > max(time.time() - OTHERS_SECONDS, own_use_ended)

    def _recently_failed(self) -> set[str]:
        after = time.monotonic() - RETRY_SECONDS
        return {name for name, failed in self._failed.items() if failed > after}

    def download(self, file: File) -> None:
        """Download a file; a failure is reported."""
        try:
            read_blocks = partial(self._read_blocks, file)
            self.cache.download(file.url, file.shard, self._eviction, read_blocks).close()
            self._own[file.name] = time.time()
        except _StoppedError:
            return
        except (OSError, UserError) as error:
            self._failed[file.name] = time.monotonic()
            logger.warning(
                "%s is not in the cache, and its samples are fetched one by one: %s",
                file.url, error,
            )  # fmt: skip
            if isinstance(error, CacheFault):
                self._stopped.wait(RETRY_SECONDS)
        finally:
            self._downloading = ""

    def _eviction(self, present: list[CachedFile]) -> list[CachedFile]:
        if self._stopped.is_set():  # another try would begin after `stop` has removed the file
            raise _StoppedError
        unused = [f for f in present if f.name not in self._kept and not self._is_used_by_others(f)]
        # Those of other trainings come first, then those that are read last.
        last = len(self._order)
        return sorted(unused, key=lambda f: (-self._order.get(f.name, last), f.used))

    def _read_blocks(self, file: File, url: str) -> Iterator[bytes]:
        self._downloading = file.name
        with storage.Ahead(storage.blocks_of(url, file.shard.bytes), BLOCKS_AHEAD) as ahead:
            for block in storage.read_blocks(url, ahead.read):
                if self._stopped.is_set():
                    raise _StoppedError
                yield block


def how_many_fit(sizes: Iterable[int], limit_bytes: int) -> int:
    """Return how many sizes, from the first one on, are at most `limit_bytes` together."""
    return sum(1 for total in accumulate(sizes) if total <= limit_bytes)
