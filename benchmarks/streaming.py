"""Time loading of training batches from a far store, against local files and WebDataset.

    OMP_NUM_THREADS=1 python benchmarks/streaming.py [--rounds 5] [--delays 0 30 60] [--workers 1 2]

A server on 127.0.0.1 waits for a delay before each response and sends 60 MB/s per connection. The
images are JPEGs of about 40 KB at 320 px, in 3 domains; they are decoded and augmented to 256 px.

    local        shards on this disk
    ahead D      from the server at a delay of D ms, with the default `data.ahead_mib`
    ranges D     the same with `--data.ahead_mib 0`: one sample at a time
    s3 ahead D   like `ahead`, by an `s3://` URL. The same server answers, as an S3 store would: a
                 bucket is a folder, and signatures are ignored. (moto is not measured: it needs
                 7 ms of a core for a request, three times as long as it takes to load an image.)
    webdataset D WebDataset reads whole shards one after the other, through curl, with the same
                 decoding and augmentation. It balances no domains and pairs no references.

Each measurement is a process of its own; the rows alternate, because the machine's speed varies.
Ratios are medians over the rounds of a row's images/s to those of the local row (or of WebDataset)
in the same round. `first_batch_seconds` is the time from opening the index to the first batch. The
last line is JSON.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import webdataset as wds
from loader import ENCODING, draw_jpegs

from stargan_dist.config import DataConfig
from stargan_dist.console.progress import progress_bar
from stargan_dist.data.index import read_index
from stargan_dist.data.loading import iterate_batches, training_loader
from stargan_dist.data.skipped import SkippedSamples
from stargan_dist.data.sources import open_sources
from stargan_dist.data.stream import Slots
from stargan_dist.data.transforms import load_augmented
from stargan_dist.shards.build import build

SIZE, BATCH, IMAGES_PER_SLOT = 256, 8, 3
DOMAINS, SHARD_IMAGES = 3, 200
BYTES_PER_SECOND = 60e6
S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}


async def answer(
    folder: Path, delay_seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer the requests of a connection. (http.server takes too much of the two cores.)"""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while request := (await reader.readuntil(b"\r\n\r\n")).decode():
            part = re.search(r"(?i)range: bytes=(\d+)-(\d*)", request)
            path = request.split()[1].partition("?")[0]  # a signature may follow
            with (folder / path.lstrip("/")).open("rb") as file:
                total = os.fstat(file.fileno()).st_size
                begin = int(part[1]) if part else 0
                end = min(int(part[2]), total - 1) if part and part[2] else total - 1
                file.seek(begin)
                data = file.read(end - begin + 1)
            await asyncio.sleep(delay_seconds + len(data) / BYTES_PER_SECOND)
            status = (
                f"206 Partial\r\nContent-Range: bytes {begin}-{end}/{total}" if part else "200 OK"
            )
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
            )
            await writer.drain()


async def serve_forever(folder: str, delay_ms: float, ports: Any) -> None:
    handler = partial(answer, Path(folder), delay_ms / 1000)
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    ports.put(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def serve(folder: str, delay_ms: float, ports: Any) -> None:
    asyncio.run(serve_forever(folder, delay_ms, ports))


@contextmanager
def far_server(folder: Path, delay_ms: float) -> Iterator[str]:
    """Serve a folder from a process of its own; yields its URL."""
    context = multiprocessing.get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=serve, args=(str(folder), delay_ms, ports), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ports.get()}"
    finally:
        process.kill()
        process.join()


def build_shards(folder: Path, images_per_domain: int) -> Path:
    """Build shards of JPEGs of about 40 KB; a few drawings are repeated."""
    jpegs = list(draw_jpegs(24))
    for i in range(DOMAINS * images_per_domain):
        path = folder / "images" / f"domain{i % DOMAINS}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpegs[i % len(jpegs)])
    shards = folder / "shards"
    build(str(folder / "images"), str(shards), val_fraction=0.0, shard_images=SHARD_IMAGES,
          encoding=ENCODING, num_processes=2)  # fmt: skip
    return shards


def our_batches(url: str, workers: int, ahead_mib: int) -> Iterator[Any]:
    sources = open_sources(DataConfig(url), "train")
    slots = Slots(sources, seed=0, image_size=SIZE, latent_dim=16, batch_size=BATCH,
                  fast_decoding=True)  # fmt: skip
    loader = training_loader(slots, range(10**6), rank=0, world_size=1, workers=workers,
                             ahead_bytes=ahead_mib * 2**20)  # fmt: skip
    return iterate_batches(loader, SkippedSamples())


def webdataset_batches(url: str, workers: int) -> Iterator[Any]:
    urls = [f"{url}/{shard.name}" for shard in read_index(url).shards()]
    rng = np.random.default_rng()

    def augment(data: bytes) -> np.ndarray:
        return load_augmented(data, SIZE, rng, fast_decoding=True)

    dataset = wds.WebDataset(urls, shardshuffle=len(urls), resampled=True).shuffle(200)
    images = dataset.to_tuple("jpeg;jpg").map_tuple(augment).batched(BATCH * IMAGES_PER_SLOT)
    return iter(wds.WebLoader(images, batch_size=None, num_workers=workers))


def time_batches(kind: str, url: str, workers: int, batches: int) -> dict[str, float]:
    """Return images/s without the first batches, and the seconds to the first batch."""
    start = time.perf_counter()
    if kind == "webdataset":
        stream = webdataset_batches(url, workers)
    else:
        stream = our_batches(url, workers, 64 if kind != "ranges" else 0)
    next(stream)
    first = time.perf_counter() - start
    for _ in range(2 * workers):  # of what was loaded during the start
        next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    seconds = time.perf_counter() - start
    images = batches * BATCH * IMAGES_PER_SLOT
    return {"images_per_second": images / seconds, "first_batch_seconds": first}


def measure(
    kind: str, url: str, workers: int, batches: int, **environment: str
) -> dict[str, float]:
    """Run `time_batches` in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, url, str(workers), str(batches)]
    env = os.environ | environment
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def ratio(rounds: list[dict[str, dict[str, float]]], row: str, other: str) -> float:
    speeds = [(r[row]["images_per_second"], r[other]["images_per_second"]) for r in rounds]
    return round(median(ours / base for ours, base in speeds), 3)


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        kind, url, workers, batches = sys.argv[2:]
        print(json.dumps(time_batches(kind, url, int(workers), int(batches))), flush=True)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of all rows (default: 5)")
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 30, 60], metavar="MS")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, default=40, help="timed per row (default: 40)")
    parser.add_argument("--images", type=int, default=1200, help="per domain (default: 1200)")
    args = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = build_shards(Path(folder), args.images)
        for workers in args.workers:
            result[f"{workers} worker(s)"] = compare(shards, workers, args)
    print(json.dumps(result))


def compare(shards: Path, workers: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure all rows in every round, and print them."""
    kinds = ("ahead", "s3 ahead", "webdataset")
    delays = [(f"{kind} {d}", kind, d) for d in args.delays for kind in kinds]
    rows = [("local", "local", None), ("ranges 30", "ranges", 30), *delays]
    rounds: list[dict[str, dict[str, float]]] = []
    progress = progress_bar(args.rounds * len(rows), "rows", description=f"{workers} worker(s)")
    for _ in range(args.rounds):
        rounds.append({})
        for name, kind, delay in rows:
            if delay is None:
                rounds[-1][name] = measure(kind, str(shards), workers, args.batches)
            else:
                with far_server(shards.parent, delay) as url:
                    count = args.batches if kind != "ranges" else 4
                    far = f"s3://{shards.name}" if kind == "s3 ahead" else f"{url}/{shards.name}"
                    s3 = S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": url}
                    rounds[-1][name] = measure(kind, far, workers, count, **s3)
            progress.update(1)
    progress.close()
    figures: dict[str, Any] = {"to_local": {n: ratio(rounds, n, "local") for n, *_ in rows[1:]}}
    figures["ahead_to_webdataset"] = {
        d: ratio(rounds, f"ahead {d}", f"webdataset {d}") for d in args.delays
    }
    figures["s3_ahead_to_local"] = {d: ratio(rounds, f"s3 ahead {d}", "local") for d in args.delays}
    for key in ("images_per_second", "first_batch_seconds"):
        figures[key] = {n: round(median(r[n][key] for r in rounds), 2) for n, *_ in rows}
    return figures


if __name__ == "__main__":
    main()
