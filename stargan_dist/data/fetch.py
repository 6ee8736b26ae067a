"""Fetch samples of far shards before they are read, many at a time.

A far store answers after tens of milliseconds, so a process that requests one sample at a time
waits most of the time. What cannot be fetched this way is left to `ShardReader.read`, with its
retries: samples and errors do not depend on what was fetched.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

from stargan_dist import storage
from stargan_dist.data.index import Shard, parse_sample_table, sample_table_range
from stargan_dist.data.order import Location
from stargan_dist.data.reader import ShardReader
from stargan_dist.errors import UserError

# Of `fetch_in_order`, which has two chunks in memory.
CHUNK_SAMPLES = 32
CHUNK_BYTES = 2**24  # expected
MAX_BYTES = 2**25  # of a chunk whose samples are larger than expected


class Wanted(NamedTuple):
    """A sample that is needed."""

    reader: ShardReader
    shard: Shard
    number: int

    @property
    def has_table(self) -> bool:
        """The sample table of its shard is known."""
        return self.reader.tables.get(self.shard) is not None


Fetched = dict[tuple[int, str, int], bytes]  # by the id of the reader, shard and sample


async def fetch(wanted: Iterable[Wanted], limit_bytes: int | None = None) -> Fetched:
    """Fetch samples that are not in a cache, in a coroutine for `storage.start`.

    Sample tables that are missing are fetched first.

    Args:
        wanted: the samples, of far stores.
        limit_bytes: leave out the last samples if all of them are larger.

    Returns:
        The bytes of those that could be fetched; their checksums are not checked.
    """
    wanted = [*wanted]
    await _fetch_tables(wanted)
    missing = [w for w in wanted if not w.reader.is_cached(w.shard)]
    if limit_bytes is not None:
        missing = _up_to(limit_bytes, missing)
    # A server without ranges sends whole shards. One request of each reader finds out.
    first = {w.reader: w for w in missing if w.reader.serves_ranges is None}
    fetched = await _fetch_samples([*first.values()])
    rest = [w for w in missing if w.reader.serves_ranges and w not in first.values()]
    return fetched | await _fetch_samples(rest)


async def _fetch_samples(wanted: Sequence[Wanted]) -> Fetched:
    ranges = {w: _range(w) for w in wanted}
    known = {w: part for w, part in ranges.items() if part is not None}
    found = await storage.read_ranges(known.values())
    fetched = {}
    for (w, part), data in zip(known.items(), found, strict=True):
        size = part.end - part.begin
        if data is not None and len(data) >= size:
            w.reader.serves_ranges = len(data) == size
            fetched[id(w.reader), w.shard.name, w.number] = data
    return fetched


async def _fetch_tables(wanted: Sequence[Wanted]) -> None:
    shards = {(w.reader, w.shard) for w in wanted}
    missing = [(reader, shard) for reader, shard in shards if reader.tables.get(shard) is None]
    ranges = [sample_table_range(reader.url, shard) for reader, shard in missing]
    found = await storage.read_ranges(ranges)
    for (reader, shard), data in zip(missing, found, strict=True):
        if data is not None:
            try:
                reader.tables.put(shard, parse_sample_table(data, shard))
            except UserError:  # reported where the sample is read
                continue


def _up_to(limit_bytes: int, wanted: Sequence[Wanted]) -> list[Wanted]:
    """Return the first samples that have a limited size together."""
    parts = map(_range, wanted)
    totals = accumulate(part.end - part.begin if part else 0 for part in parts)
    return [w for w, total in zip(wanted, totals, strict=True) if total <= limit_bytes]


def _range(wanted: Wanted) -> storage.Range | None:
    reader, shard, number = wanted
    table = reader.tables.get(shard)
    if table is None:
        return None
    begin, end = table.offsets[number : number + 2].tolist()
    return storage.Range(storage.join(reader.url, shard.name), begin, end)


def fetch_in_order(reader: ShardReader, locations: Iterable[Location]) -> Iterator[Location]:
    """Yield locations, in whose order samples are read, while later samples are being fetched.

    When the location of a sample of a far store is yielded, `reader.fetched` has the sample, unless
    it could not be fetched. All reads and errors are left to `ShardReader.read`.
    """
    if not reader.is_far or (reader.cache and reader.waits_for_cache):
        yield from locations
        return
    chunk: list[Location] = []
    future = storage.start(fetch([]))
    try:
        for following in chain(_chunks(reader, locations), [[]]):
            fetched = future.result()
            future = storage.start(
                fetch((Wanted(reader, reader.shard(at), at.sample) for at in following), MAX_BYTES)
            )
            reader.fetched = {(shard, number): data for (_, shard, number), data in fetched.items()}
            yield from chunk
            chunk = following
    finally:
        future.cancel()
        reader.fetched = {}


def _chunks(reader: ShardReader, locations: Iterable[Location]) -> Iterator[list[Location]]:
    """Divide locations into chunks to be fetched at once, by the mean size of shards' samples."""
    chunk: list[Location] = []
    size = 0
    for location in locations:
        mean = reader.shard(location).mean_sample_bytes
        if chunk and (len(chunk) == CHUNK_SAMPLES or size + mean > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(location)
        size += mean
    yield chunk
