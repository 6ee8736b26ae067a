"""Random access to single samples of shards, by byte ranges through fsspec.

The index holds the position of every sample, so a reader fetches only the samples it needs.
"""

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from stargan_dist import storage
from stargan_dist.config import DataConfig
from stargan_dist.data import transforms
from stargan_dist.data.cache import CacheFault, ShardCache
from stargan_dist.data.index import Index, SampleTable, Shard, read_index, read_sample_table
from stargan_dist.data.order import WINDOW_SHARDS, Location
from stargan_dist.data.sample import Sample, parse_sample
from stargan_dist.errors import PermanentError, UserError, explained, printable

STREAMS = 3  # sources, references, second references


class SampleTables:
    """The most recently used sample tables of a dataset, for several threads. A copy is empty."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._tables: OrderedDict[str, SampleTable] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleTables, (self.capacity,)

    def get(self, shard: Shard) -> SampleTable | None:
        with self._lock:
            if shard.name in self._tables:
                self._tables.move_to_end(shard.name)
            return self._tables.get(shard.name)

    def put(self, shard: Shard, table: SampleTable) -> None:
        with self._lock:
            self._tables[shard.name] = table
            while len(self._tables) > self.capacity:
                self._tables.popitem(last=False)


class ShardReader:
    """Random access to the samples of one split. Picklable and fork-safe.

    Args:
        url: folder or URL of the dataset.
        index: the dataset's index.
        split: name of the split.
        cache: cache of whole shards; None: each sample is fetched by its byte range.
        waits_for_cache: a sample waits for the download of its shard to the cache, unless this
            process has found that byte ranges are served.

    Attributes:
        tables: of this process.
        fetched: bytes of samples that were fetched beforehand (read_ahead.py), by the name of the
            shard and the number of the sample.
        serves_ranges: a range of bytes had the requested size in this process; None: unknown.
    """

    def __init__(
        self,
        url: str,
        index: Index,
        split: str,
        cache: ShardCache | None = None,
        *,
        waits_for_cache: bool = True,
    ) -> None:
        self.url, self.index, self.split, self.cache = url, index, split, cache
        self.waits_for_cache = waits_for_cache
        in_windows = STREAMS * WINDOW_SHARDS * len(index.domains)
        self.tables = SampleTables(max(1024, 2 * in_windows))
        self.fetched: Mapping[tuple[str, int], bytes] = {}
        self.serves_ranges: bool | None = None
        self._starts = [np.cumsum([0, *counts]) for counts in index.counts(split)]
        # Shard -> reason. Each attempt on an unreachable shard takes long, and a step waits for
        # all ranks: such a shard is not tried again.
        self._unreachable: dict[str, str] = {}

    @cached_property  # to find a filesystem takes as long as a tenth of a request
    def is_far(self) -> bool:
        """Samples may take long to fetch: they are in a store, or on another disk than the cache.

        Chained URLs have caches of their own.
        """
        return storage.is_far(self.url) or (self.cache is not None and "::" not in self.url)

    def is_cached(self, shard: Shard) -> bool:
        """Return True if a shard is in the cache."""
        return bool(self.cache and self.cache.has(storage.join(self.url, shard.name), shard))

    def shard(self, location: Location) -> Shard:
        """Return the shard of a sample."""
        domain = self.index.domains[location.domain]
        return self.index.splits[self.split][domain][location.shard]

    def forget_unreachable(self) -> None:
        """Forget which shards could not be reached, so that they are tried again."""
        self._unreachable.clear()

    def locate(self, domain: int, number: int) -> Location:
        """Return the location of an image of a domain by its number in the order of the shards."""
        starts = self._starts[domain]
        shard = int(np.searchsorted(starts, number, side="right")) - 1
        return Location(domain, shard, number - int(starts[shard]))

    def num_images(self, domain: int) -> int:
        """Return the number of images of a domain."""
        return int(self._starts[domain][-1])

    @cached_property
    def _domain_starts(self) -> np.ndarray:
        """For each domain, the number of images of the domains before it; then that of all."""
        return np.cumsum([0, *map(self.num_images, range(len(self.index.domains)))])

    def numbers(self, domain: int) -> range:
        """Return the numbers of a domain's images in the split: domains follow each other."""
        return range(*self._domain_starts[domain : domain + 2].tolist())

    def locate_in_split(self, number: int) -> Location:
        """Return the location of an image by its number in the split."""
        domain = int(np.searchsorted(self._domain_starts, number, side="right")) - 1
        return self.locate(domain, number - int(self._domain_starts[domain]))

    def read(self, location: Location) -> Sample:
        """Fetch one sample.

        Raises:
            UserError: the shard cannot be read or does not match the index.
            CacheFault: the cache's disk is full.
        """
        shard = self.shard(location)
        where = f"sample {location.sample} of shard {storage.join(self.url, shard.name)}"
        try:
            return self._read(shard, location.sample)
        except CacheFault:  # not a fault of the shard
            raise
        except PERMANENT_FAULTS as error:
            remedy = "restore the shard or rebuild the dataset"
            raise UserError(f"cannot read {where}: {_describe(error)}; {remedy}") from error
        except OSError as error:
            raise explained(f"cannot read {where}: {_describe(error)}", error) from error

    def _read(self, shard: Shard, number: int) -> Sample:
        try:
            return parse_sample(self._read_checked(shard, number))
        except DamagedError:
            if not self.cache:
                raise
            # Only the cached copy may be damaged: download it again.
            self.cache.discard(storage.join(self.url, shard.name), shard)
            return parse_sample(self._read_checked(shard, number))

    def _read_checked(self, shard: Shard, number: int) -> bytes:
        table = self._table(shard)
        begin, end = table.offsets[number : number + 2].tolist()
        size, crc32 = end - begin, int(table.crc32[number])
        fetched = self.fetched.get((shard.name, number), b"")
        if len(fetched) == size and zlib.crc32(fetched) == crc32:
            return fetched
        return _checked(self._fetch(shard, begin, end), size, crc32)

    def _table(self, shard: Shard) -> SampleTable:
        table = self.tables.get(shard)
        if table is None:
            table = read_sample_table(self.url, shard)
            self.tables.put(shard, table)
        return table

    def _fetch(self, shard: Shard, begin: int, end: int) -> bytes:
        """Fetch the bytes [begin, end) of a shard.

        Raises:
            OSError: they cannot be read; at once if the shard was unreachable before.
        """
        if shard.name in self._unreachable:
            raise OSError(f"{self._unreachable[shard.name]} (earlier; not tried again)")
        url = storage.join(self.url, shard.name)
        try:
            cached = self._read_cache(url, shard, begin, end) if self.cache else None
            return storage.read_range(url, begin, end) if cached is None else cached
        except OSError as error:
            self._unreachable[shard.name] = _describe(error)
            raise

    def _read_cache(self, url: str, shard: Shard, begin: int, end: int) -> bytes | None:
        assert self.cache
        if self.waits_for_cache and not self.serves_ranges:
            return self.cache.read_range(url, shard, begin, end)
        return self.cache.read_cached(url, shard, begin, end)

    def read_image(self, location: Location) -> tuple[Image.Image, Sample]:
        """Return the decoded RGB image of a sample, and the sample.

        Raises:
            UserError: the sample cannot be read or decoded.
        """
        sample = self.read(location)
        try:
            return transforms.decode(sample.image), sample
        except UserError as error:
            raise UserError(f"sample {sample.key} of {self.url}: {error}") from error


class DamagedError(PermanentError):
    """The bytes of a sample do not match the index."""


# Faults that last until the shard is replaced. A UserError, about contents, is a ValueError.
PERMANENT_FAULTS = (DamagedError, FileNotFoundError, ValueError)


def _describe(error: Exception) -> str:
    """Describe an error in one line."""
    if isinstance(error, FileNotFoundError):
        return f"no such file as {error.filename or error}"
    return " ".join(str(error).split()) or repr(error)


def _checked(data: bytes, size: int, crc32: int) -> bytes:
    """Return the data after checking them against the index.

    Raises:
        DamagedError: the size or the checksum differs.
        PermanentError: there are more bytes than requested.
    """
    if len(data) > size:
        message = (
            "the server does not serve ranges of bytes: set data.cache to a local folder, with a "
            "data.cache_gib that holds the shards that are read from at one time"
        )
        raise PermanentError(message)
    if len(data) < size:
        raise DamagedError("it is truncated")
    if zlib.crc32(data) != crc32:
        raise DamagedError("it is damaged, a checksum is wrong")
    return data


def open_readers(config: DataConfig, split: str) -> list[ShardReader]:
    """Open a split of each data source, by byte ranges or through the configured cache.

    Raises:
        UserError: there are no shards, or not the pair of domains; the cache is too small to be
            useful, not local, or not writable.
    """
    urls = [source.shards for source in config.all_sources.values()]
    indexes = {url: _read_index(url, config.pair) for url in urls}
    cache = _open_cache(config, indexes.values())
    in_use = sum(working_set_bytes(index, split) for index in indexes.values())
    holds_all = cache is not None and cache.limit_bytes >= in_use
    if cache and not holds_all and (not config.ahead_mib or any("::" in url for url in urls)):
        raise UserError(
            f"data.cache_gib: {config.cache_gib} GiB cannot hold the {in_use / 2**30:.1f} GiB "
            "of shards that are read from at one time; each would be downloaded again and again: "
            "raise it, read ahead (data.ahead_mib, not with chained URLs), or leave data.cache "
            "empty"
        )
    return [ShardReader(url, indexes[url], split, cache, waits_for_cache=holds_all) for url in urls]


def _read_index(url: str, pair: list[str]) -> Index:
    """Read the index of a dataset, or of a pair of its domains."""
    index = read_index(url)
    storage.import_client(url)
    try:
        return index.of_domains(pair) if pair else index
    except UserError as error:
        raise UserError(f"data.pair: {url}: {error}") from error


def open_reader(config: DataConfig, split: str) -> ShardReader:
    """Open a split of the only data source of a configuration. Raises as `open_readers` does."""
    (reader,) = open_readers(config, split)
    return reader


def _open_cache(config: DataConfig, indexes: Iterable[Index]) -> ShardCache | None:
    """Return the configured cache, if any."""
    if not config.cache:
        return None
    if not storage.is_local(config.cache):
        raise UserError(f"data.cache: {config.cache} is no local folder: name one of this machine")
    storage.check_writable(config.cache)
    limit = int(config.cache_gib * 2**30)
    largest = max((shard.bytes for index in indexes for shard in index.shards()), default=0)
    if limit < largest:
        raise UserError(
            f"data.cache_gib: {config.cache_gib} GiB cannot hold the largest shard, which has "
            f"{largest / 2**30:.2g} GiB: raise it, or leave data.cache empty"
        )
    _, folder = storage.filesystem(config.cache)  # without `~` and `file://`
    return ShardCache(folder, limit)


def working_set_bytes(index: Index, split: str) -> int:
    """Return an upper bound on the bytes of the shards that training reads from at one time.

    Each stream of each domain reads from one window of shards.
    """
    windows = (
        STREAMS * sum(sorted((shard.bytes for shard in shards), reverse=True)[:WINDOW_SHARDS])
        for shards in index.splits.get(split, {}).values()
    )
    whole_split = sum(s.bytes for shards in index.splits.get(split, {}).values() for s in shards)
    return min(sum(windows), whole_split)


def check_split(index: Index, split: str, minimum: int, url: str) -> None:
    """Check that each domain has at least `minimum` images in a split.

    Raises:
        UserError: a domain has fewer.
    """
    for domain, counts in zip(index.domains, index.counts(split), strict=True):
        if sum(counts) < minimum:
            raise UserError(
                f"{url}: domain {printable(domain, 200)} has {sum(counts)} images in split "
                f"{split}, at least {minimum} are needed: add images and rebuild the shards"
            )
