"""Simulate the traffic between an object store and training, from the order of the samples alone.

    python benchmarks/store_traffic.py [--images 1000000] [--domains 3 100] [--worlds 8x1 64x8]

For each number of domains, ranks and nodes, and for caches (`data.cache`) of several sizes per
node, one pass over the dataset (as many slots as images, three reads each) is replayed:

    requests    of the store per image read: ranges of bytes, sample tables, and blocks of 8 MiB of
                shards that are downloaded to the cache
    bytes       from the store per byte used
    idle        share of the intervals of 10 steps in which no shard is downloaded
    burst       GB of shards that are missing at a time, in the worst interval after the first ones
    GET/s       at `--slots-per-second` and rank, in the mean
    price       of the pass, of its requests and its bytes; the defaults are those of Amazon S3
                within a region (0.4 USD per million GET, nothing per GB)

No data is read. Shards are downloaded at `--gigabytes-per-second` and node, in the order in which
they are read next; samples of shards that have not arrived are fetched by their ranges. The first
row of a world is without a cache. `minimum` is a cache that holds the shards that are read from at
one time. The last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.data.cache_filler import how_many_fit
from stargan_dist.data.index import Index, SampleTable, Shard
from stargan_dist.data.labels import domain_labels
from stargan_dist.data.reader import SampleTables, ShardReader, working_set_bytes
from stargan_dist.data.sources import DataSources
from stargan_dist.data.stream import Slots

SHARD_IMAGES, IMAGE_BYTES, TABLE_BYTES = 1000, 43_000, 34_000
READS_PER_SLOT, BATCH_PER_RANK, WORKERS, STEPS = 3, 8, 4, 10


@dataclass(frozen=True)
class Traffic:
    """Traffic of a pass, of all nodes together."""

    requests: float
    bytes: float
    idle_share: float
    burst_bytes: float


def make_slots(images: int, domains: int, batch_size: int) -> Slots:
    """Return the slots of a dataset that does not exist."""
    counts = [len(part) for part in np.array_split(np.arange(images), domains)]
    splits = {
        str(d): [
            Shard(f"{d}/{i}", samples, samples * IMAGE_BYTES, "", [1, 1], [1, 1])
            for i, samples in enumerate(shard_sizes(count))
        ]
        for d, count in enumerate(counts)
    }
    index = Index([*splits], {"train": splits}, "")
    sources = DataSources([ShardReader("s3://b", index, "train")], domain_labels(index.domains))
    return Slots(sources, 0, image_size=1, latent_dim=1, batch_size=batch_size)


def shard_sizes(images: int) -> list[int]:
    shards = ceil(images / SHARD_IMAGES)
    return [len(part) for part in np.array_split(np.arange(images), shards)]


def read_shards(slots: Slots, images: int) -> np.ndarray:
    """Return the number of the shard of each read, (slots, 3)."""
    numbers = {shard: i for i, shard in enumerate(slots.readers[0].index.shards())}
    reads = np.empty((images, READS_PER_SLOT), np.int32)
    bar = progress_bar(images, "slots", description="order")
    for slot in range(images):
        reads[slot] = [numbers[r.shard(location)] for r, location in slots.samples([slot])]
        bar.update(1)
    bar.close()
    return reads


def table_requests(reads: np.ndarray, slots: Slots, ranks: int) -> float:
    """Return the requests for sample tables per read, from the reads of one loader process."""
    (reader,) = slots.readers
    shards = reader.index.shards()
    table = SampleTable(np.zeros(0), np.zeros(0))
    steps = reads[: len(reads) // slots.batch_size * slots.batch_size]
    mine = steps.reshape(-1, ranks, BATCH_PER_RANK, READS_PER_SLOT)[::WORKERS, 0]
    tables = SampleTables(reader.tables.capacity)
    requests = 0
    for number in mine.reshape(-1).tolist():
        if tables.get(shards[number]) is None:
            requests += 1
            tables.put(shards[number], table)
    return requests / mine.size


def intervals(reads: np.ndarray, slots: Slots) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first slot and the reads of intervals of some steps."""
    length = STEPS * slots.batch_size
    for begin in range(0, len(reads), length):
        yield begin, reads[begin : begin + length].reshape(-1)


def cached_pass(
    reads: np.ndarray, slots: Slots, limit_bytes: float, nodes: int, interval_bytes: float
) -> Traffic:
    """Replay a pass with a cache on each node. All nodes have the same shards."""
    shards = slots.readers[0].index.shards()
    numbers = {shard: i for i, shard in enumerate(shards)}
    sizes = np.array([shard.bytes for shard in shards])
    cached = np.zeros(len(shards), bool)
    ranges = downloads = idle = 0
    burst = 0.0
    for begin, interval in intervals(reads, slots):
        ahead = [shard for _, shard in slots.next_shards(begin)]
        fit = how_many_fit((s.bytes for s in ahead), int(limit_bytes))
        kept = [numbers[s] for s in ahead[:fit]]
        missing = [number for number in kept if not cached[number]]
        arrived = missing[: int(np.searchsorted(np.cumsum(sizes[missing]), interval_bytes))]
        ranges += int((~cached[interval]).sum())
        cached[:] = np.isin(np.arange(len(shards)), [n for n in kept if cached[n]] + arrived)
        downloads += int(sizes[arrived].sum())
        idle += not missing
        if begin > len(reads) / 2:
            burst = max(burst, float(sizes[missing].sum()))
    blocks = ceil(SHARD_IMAGES * IMAGE_BYTES / storage.BLOCK_BYTES)
    requests = ranges + nodes * downloads / (SHARD_IMAGES * IMAGE_BYTES) * blocks
    return Traffic(
        requests,
        ranges * IMAGE_BYTES + nodes * downloads,
        idle / len(range(0, len(reads), STEPS * slots.batch_size)),
        burst,
    )


def simulate(
    reads: np.ndarray, slots: Slots, ranks: int, nodes: int, args: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Return the rows of a world, by the size of the cache."""
    images = len(reads)
    (reader,) = slots.readers
    tables = table_requests(reads, slots, ranks)
    seconds = STEPS * BATCH_PER_RANK / args.slots_per_second
    total = images * IMAGE_BYTES
    minimum = working_set_bytes(reader.index, "train")
    caches = {"none": 0, "minimum": minimum} | {f"{p} %": total * p / 100 for p in args.caches}
    rows = {}
    for name, limit in caches.items():
        traffic = cached_pass(reads, slots, limit, nodes, seconds * args.gigabytes_per_second * 1e9)
        requests = traffic.requests + tables * reads.size
        size = traffic.bytes + tables * reads.size * TABLE_BYTES
        rows[name] = {
            "cache_gb": round(limit / 1e9, 1),
            "requests": round(requests / reads.size, 4),
            "bytes": round(size / (reads.size * IMAGE_BYTES), 3),
            "idle": round(traffic.idle_share, 3),
            "burst_gb": round(traffic.burst_bytes / 1e9, 1),
            "gets_per_second": round(requests / images * args.slots_per_second * ranks),
            "usd": round(requests / 1e6 * args.usd_per_million + size / 1e9 * args.usd_per_gb, 2),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000, help="(default: 1000000)")
    parser.add_argument("--domains", type=int, nargs="+", default=[3, 100])
    parser.add_argument("--worlds", nargs="+", default=["8x1", "64x8"], metavar="RANKSxNODES")
    parser.add_argument("--caches", type=int, nargs="+", default=[10, 50, 110], metavar="PERCENT")
    parser.add_argument("--slots-per-second", type=float, default=20, help="of a rank (20)")
    parser.add_argument("--gigabytes-per-second", type=float, default=1, help="of a node (1)")
    parser.add_argument("--usd-per-million", type=float, default=0.4, help="requests (0.4)")
    parser.add_argument("--usd-per-gb", type=float, default=0, help="(0)")
    args = parser.parse_args()
    result = {}
    for domains in args.domains:
        reads = read_shards(make_slots(args.images, domains, BATCH_PER_RANK), args.images)
        for world in args.worlds:
            ranks, nodes = map(int, world.split("x"))
            name = f"{domains} domains, {ranks} ranks on {nodes} node(s)"
            slots = make_slots(args.images, domains, BATCH_PER_RANK * ranks)
            result[name] = simulate(reads, slots, ranks, nodes, args)
            print_table(name, result[name])
    print(json.dumps(result))


def print_table(name: str, rows: dict[str, dict[str, float]]) -> None:
    print(f"\n{name}")
    for i, (cache, row) in enumerate(rows.items()):
        if i == 0:
            print("".join(f"{title:>16}" for title in ("cache", *row)))
        print("".join(f"{value:>16}" for value in (cache, *row.values())))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
