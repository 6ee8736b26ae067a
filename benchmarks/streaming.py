"""Time loading of training batches from a far store, against local files and WebDataset.

    OMP_NUM_THREADS=1 python benchmarks/streaming.py [--rounds 5] [--rows NAME…]

A server on 127.0.0.1 (far_store.py) waits for a delay before each response and sends 60 MB/s per
connection. The images are JPEGs of about 40 KB at 320 px, in 3 domains; they are decoded and
augmented to 256 px. Rows, each with one loader process, and some with two (`x 2`):

    local        shards on this disk
    ahead D      from the server at a delay of D ms, with the default `data.ahead_mib`
    ranges       one sample at a time (`--data.ahead_mib 0`), 30 ms, as all rows that follow
    webdataset   WebDataset reads whole shards one after the other, through curl, with the same
                 decoding and augmentation. It balances no domains and pairs no references.
    mosaic       mosaicml-streaming, if it is installed, as WebDataset
    s3           ahead, from an `s3://` URL
    s3 cache     the same with a `data.cache` that has all shards
    empty cache  ahead, with a `data.cache` that has none
    resume       ahead, from step 50000 on
    windows      ahead, many small shards, through a cache that holds the shards in use alone

Each measurement is a process of its own; the rows alternate, because the machine's speed varies.
Ratios are medians over the rounds of a row's images/s to those of another row in the same round. A
first batch is timed from opening the index. The last line is JSON:

    window_stall_to_batch      longest wait for a batch to the median, over several windows
    min_cache_bytes_per_byte   bytes received for each byte read, after the first windows
    peak_ahead_mib             largest estimate of the samples that were fetched or under way
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import webdataset as wds
from far_store import far_server, s3_environment
from loader import ENCODING, draw_jpegs
from torch.utils.data import DataLoader

from stargan_dist import storage
from stargan_dist.config import DataConfig
from stargan_dist.console.progress import progress_bar
from stargan_dist.data.cache import ShardCache
from stargan_dist.data.index import read_index
from stargan_dist.data.loading import TrafficMeter, iterate_batches, training_loader
from stargan_dist.data.reader import working_set_bytes
from stargan_dist.data.skipped import SkippedSamples
from stargan_dist.data.sources import open_sources
from stargan_dist.data.stream import Slots
from stargan_dist.data.transforms import load_augmented
from stargan_dist.shards.build import build

SIZE, BATCH, IMAGES_PER_SLOT, DOMAINS = 256, 8, 3, 3
HERE = Path(__file__).parent
HAS_MOSAIC = bool(PathFinder.find_spec("streaming", [p for p in sys.path if Path(p) != HERE]))
WARM_UP_BATCHES = 4  # per loader process: of what was loaded during the start

Figures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """What is measured in a process of its own.

    Attributes:
        loader: ours, webdataset or mosaic.
        protocol: http or s3; empty: local files.
        delay_ms: of the server.
        workers: loader processes.
        ahead_mib: `data.ahead_mib`.
        cache: empty, all (shards are in it) or minimum (it holds the shards in use alone).
        shards: folder of the shards.
        first_step: step from which batches are loaded.
        warm_up: batches that are not timed.
        batches: batches that are timed.
    """

    loader: str = "ours"
    protocol: str = "http"
    delay_ms: float = 30
    workers: int = 1
    ahead_mib: int = 64
    cache: str = ""
    shards: str = "shards"
    first_step: int = 0
    warm_up: int = WARM_UP_BATCHES
    batches: int = 120


ROWS = {
    "local": Row(protocol=""),
    "ahead 0": Row(delay_ms=0),
    "ahead 30": Row(),
    "ahead 60": Row(delay_ms=60),
    "ranges": Row(ahead_mib=0, batches=4),
    "webdataset": Row("webdataset"),
    "mosaic": Row("mosaic", "s3", shards="mosaic"),
    "s3": Row(protocol="s3"),
    "s3 cache": Row(protocol="s3", cache="all"),
    "empty cache": Row(cache="empty"),
    "resume": Row(first_step=50_000, batches=4),
    "windows": Row(cache="minimum", shards="small", warm_up=60, batches=600),
    "local x 2": Row(protocol="", workers=2, batches=240),
    "ahead 30 x 2": Row(workers=2, batches=240),
    "webdataset x 2": Row("webdataset", workers=2, batches=240),
}


# In the process of a row.


def our_batches(row: Row, url: str, cache: str, meter: TrafficMeter) -> Iterator[Any]:
    minimum = working_set_bytes(read_index(url), "train") / 2**30
    gib = minimum if row.cache == "minimum" else 100.0
    config = DataConfig(url, cache=cache, cache_gib=gib)
    slots = Slots(open_sources(config, "train"), seed=0, image_size=SIZE, latent_dim=16,
                  batch_size=BATCH, fast_decoding=True)  # fmt: skip
    loader = training_loader(slots, range(row.first_step, 10**6), rank=0, world_size=1,
                             workers=row.workers, ahead_bytes=row.ahead_mib * 2**20)  # fmt: skip
    return iterate_batches(loader, SkippedSamples(), meter)


def augment(data: bytes) -> np.ndarray:
    return load_augmented(data, SIZE, np.random.default_rng(), fast_decoding=True)


def webdataset_batches(row: Row, url: str) -> Iterator[Any]:
    urls = [f"{url}/{shard.name}" for shard in read_index(url).shards()]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), resampled=True).shuffle(200)
    images = dataset.to_tuple("jpeg;jpg").map_tuple(augment).batched(BATCH * IMAGES_PER_SLOT)
    return iter(wds.WebLoader(images, batch_size=None, num_workers=row.workers))


def import_mosaic() -> Any:
    """Import mosaicml-streaming, whose module has the name of this file."""
    found = PathFinder.find_spec("streaming", [p for p in sys.path if Path(p) != HERE])
    assert found and found.loader
    module = sys.modules["streaming"] = module_from_spec(found)
    found.loader.exec_module(module)
    return module


def mosaic_batches(row: Row, url: str, cache: str) -> Iterator[Any]:
    mosaic = import_mosaic()
    size = BATCH * IMAGES_PER_SLOT

    class Images(mosaic.StreamingDataset):  # type: ignore[name-defined]
        def __getitem__(self, at: int) -> Any:
            return augment(super().__getitem__(at)["jpeg"])

    dataset = Images(remote=url, local=cache, shuffle=True, batch_size=size)
    while True:
        yield from DataLoader(dataset, batch_size=size, num_workers=row.workers)


def batches_of(row: Row, url: str, cache: str, meter: TrafficMeter) -> Iterator[Any]:
    if row.loader == "webdataset":
        return webdataset_batches(row, url)
    if row.loader == "mosaic":
        return mosaic_batches(row, url, cache)
    return our_batches(row, url, cache if row.cache else "", meter)


def download_all(url: str, cache: str) -> None:
    """Download the shards that are not in a cache yet."""
    for shard in read_index(url).shards():
        location = storage.join(url, shard.name)
        ShardCache(cache, 2**40).download(location, shard).close()


def time_batches(row: Row, url: str, cache: str) -> Figures:
    """Load batches; return what is measured of them.

    A cache that is to have all shards has them afterwards.
    """
    meter = TrafficMeter()
    start = time.perf_counter()
    stream = batches_of(row, url, cache, meter)
    next(stream)
    first = time.perf_counter() - start
    for _ in range(row.warm_up * row.workers):
        next(stream)
    peak, meter.bytes = meter.ahead_bytes, 0
    times = [time.perf_counter()]
    for _ in range(row.batches):
        next(stream)
        times.append(time.perf_counter())
    if row.cache == "all":
        download_all(url, cache)
    waits = np.diff(times)
    images = row.batches * BATCH * IMAGES_PER_SLOT
    return {
        "images_per_second": images / (times[-1] - times[0]),
        "first_batch_seconds": first,
        "stall_to_batch": float(waits.max() / np.median(waits)),
        "bytes_per_image": meter.bytes / images,
        "peak_ahead_mib": max(peak, meter.ahead_bytes) / 2**20,
    }


# In the process that starts them.


def build_datasets(folder: Path, images_per_domain: int) -> float:
    """Build shards of JPEGs; a few drawings are repeated. Returns the mean size of a sample."""
    jpegs = list(draw_jpegs(24))
    for i in range(DOMAINS * images_per_domain):
        path = folder / "images" / f"domain{i % DOMAINS}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpegs[i % len(jpegs)])
    for name, shard_images in (("shards", 200), ("small", 10)):
        build(str(folder / "images"), str(folder / name), val_fraction=0.0,
              shard_images=shard_images, encoding=ENCODING, num_processes=2)  # fmt: skip
    index = read_index(str(folder / "small"))
    if HAS_MOSAIC:
        write_mosaic(folder / "mosaic", jpegs * (DOMAINS * images_per_domain // len(jpegs)))
    return sum(s.bytes for s in index.shards()) / sum(s.samples for s in index.shards())


def write_mosaic(folder: Path, jpegs: list[bytes]) -> None:
    mosaic = import_mosaic()
    with mosaic.MDSWriter(out=str(folder), columns={"jpeg": "bytes"}, size_limit="8mb") as writer:
        for jpeg in jpegs:
            writer.write({"jpeg": jpeg})


def measure(row: Row, folder: Path) -> Figures:
    """Run `time_batches` in a process of its own."""
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    with far_server(folder, row.delay_ms) if row.protocol else nullcontext("") as server:
        urls = {"": folder / row.shards, "http": f"{server}/{row.shards}"}
        url = str(urls.get(row.protocol, f"s3://{row.shards}"))
        env = os.environ | s3_environment(server)
        figures = run_row(row, url, cache, env)
        if row.cache == "all":  # now it is
            figures = run_row(row, url, cache, env)
        return figures


def run_row(row: Row, url: str, cache: Path, env: dict[str, str]) -> Figures:
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(row)), url, str(cache)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def summarise(rounds: list[dict[str, Figures]], bytes_per_image: float) -> dict[str, float | None]:
    """Return the figures of the last line; None where a row was not measured."""

    def of(row: str, figure: str) -> float | None:
        return median(r[row][figure] for r in rounds) if row in rounds[0] else None

    def ratio(row: str, other: str, figure: str = "images_per_second") -> float | None:
        if row not in rounds[0] or other not in rounds[0]:
            return None
        return round(median(r[row][figure] / r[other][figure] for r in rounds), 3)

    received = of("windows", "bytes_per_image")
    return {
        "ahead_to_local": ratio("ahead 30", "local"),
        "ahead_to_local_2workers": ratio("ahead 30 x 2", "local x 2"),
        "ahead_to_webdataset": ratio("ahead 30", "webdataset"),
        "ahead_to_local_60ms": ratio("ahead 60", "local"),
        "ranges_to_local": ratio("ranges", "local"),
        "s3_ahead_to_local": ratio("s3", "local"),
        "s3_cache_to_local": ratio("s3 cache", "local"),
        "first_batch_s": of("ahead 30", "first_batch_seconds"),
        "resume_s": of("resume", "first_batch_seconds"),
        "empty_cache_to_ranges_first_batch": ratio(
            "empty cache", "ahead 30", "first_batch_seconds"
        ),
        "window_stall_to_batch": of("windows", "stall_to_batch"),
        "min_cache_bytes_per_byte": received and received / bytes_per_image,
        "peak_ahead_mib": of("ahead 30", "peak_ahead_mib"),
    }


def print_table(rounds: list[dict[str, Figures]]) -> None:
    print(f"\n{'':<16}{'images/s':>10}{'of local':>10}{'first batch, s':>16}")
    for name, row in ROWS.items():
        if name in rounds[0]:
            base = f"local{' x 2' * (row.workers == 2)}"
            speeds = [(r[name]["images_per_second"], r[base]["images_per_second"]) for r in rounds]
            share = median(speed / local for speed, local in speeds)
            first = median(r[name]["first_batch_seconds"] for r in rounds)
            speed = median(speed for speed, _ in speeds)
            print(f"{name:<16}{speed:>10.0f}{share:>10.2f}{first:>16.2f}")


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        fields, url, cache = sys.argv[2:]
        print(json.dumps(time_batches(Row(**json.loads(fields)), url, cache)), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of all rows (default: 5)")
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=[*ROWS], metavar="NAME")
    parser.add_argument("--images", type=int, default=1200, help="per domain (default: 1200)")
    args = parser.parse_args()
    names = {"local", "local x 2", *args.rows} - (set() if HAS_MOSAIC else {"mosaic"})
    rows = {name: row for name, row in ROWS.items() if name in names}
    rounds: list[dict[str, Figures]] = []
    with tempfile.TemporaryDirectory() as folder:
        bytes_per_image = build_datasets(Path(folder), args.images)
        progress = progress_bar(args.rounds * len(rows), "rows", description="measuring")
        for _ in range(args.rounds):
            rounds.append({})
            for name, row in rows.items():
                rounds[-1][name] = measure(row, Path(folder))
                progress.update(1)
        progress.close()
    print_table(rounds)
    figures = summarise(rounds, bytes_per_image)
    print(json.dumps({k: v and round(v, 3) for k, v in figures.items()}))


if __name__ == "__main__":
    main()
