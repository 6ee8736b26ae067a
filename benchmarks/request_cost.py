"""Measure what a request of a range costs its client: processor time, without waiting.

    OMP_NUM_THREADS=1 python benchmarks/request_cost.py [--requests 3000] [--rounds 3]

A server on 127.0.0.1 (far_store.py) serves ranges of 40 kB after 30 ms, by HTTP and as an S3 store.
64 requests are under way at a time. Rows:

    http     ranges by HTTP in the background, as loader processes read them
    aiohttp  the same by fsspec's HTTP filesystem, the baseline
    s3       ranges of S3 objects in the background, with signed URLs
    s3fs     the same by s3fs, which has 10 connections

Rows alternate; each has the median of its rounds. The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from far_store import far_server, s3_environment

from stargan_dist import storage
from stargan_dist.storage.background import MAX_REQUESTS

RANGE_BYTES, FILE_BYTES = 40_000, 2**23
DELAY_MS = 30
BASELINE = "aiohttp"

Reader = Callable[[list[storage.Range]], Coroutine[Any, Any, Any]]


async def by_filesystem(parts: list[storage.Range]) -> list[bytes]:
    fs, _ = storage.filesystem(parts[0].url)
    slots = asyncio.Semaphore(MAX_REQUESTS)

    async def read(part: storage.Range) -> bytes:
        async with slots:
            data: bytes = await fs._cat_file(part.url, start=part.begin, end=part.end)
        return data

    return await asyncio.gather(*map(read, parts))


def milliseconds(read: Reader, url: str, requests: int) -> float:
    """Return the processor time of this process for a request."""
    rng = random.Random(0)
    begins = [rng.randrange(FILE_BYTES - RANGE_BYTES) for _ in range(requests)]
    parts = [storage.Range(url, begin, begin + RANGE_BYTES) for begin in begins]
    storage.start(read(parts[:MAX_REQUESTS])).result()  # connections, a signed URL
    start = time.process_time()
    results = storage.start(read(parts)).result()
    seconds = time.process_time() - start
    assert [len(data) for data in results] == [RANGE_BYTES] * requests
    return seconds / requests * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=3000, help="of a row (default: 3000)")
    parser.add_argument("--rounds", type=int, default=3, help="of all rows (default: 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, far_server(Path(folder), DELAY_MS) as server:
        Path(folder, "bucket").mkdir()
        Path(folder, "bucket", "file").write_bytes(random.Random(0).randbytes(FILE_BYTES))
        os.environ.update(s3_environment(server))
        by_http, by_s3 = f"{server}/bucket/file", "s3://bucket/file"
        rows = {
            "http": partial(milliseconds, storage.read_ranges, by_http),
            BASELINE: partial(milliseconds, by_filesystem, by_http),
            "s3": partial(milliseconds, storage.read_ranges, by_s3),
            "s3fs": partial(milliseconds, by_filesystem, by_s3),
        }
        rounds = [{row: of(args.requests) for row, of in rows.items()} for _ in range(args.rounds)]
    results = {row: round(median(of[row] for of in rounds), 3) for row in rows}
    print(f"{'':<10}{'ms a request':>14}{'/ ' + BASELINE:>12}")
    for row, ms in results.items():
        print(f"{row:<10}{ms:>14.3f}{ms / results[BASELINE]:>12.2f}")
    ratios = {row: round(ms / results[BASELINE], 2) for row, ms in results.items()}
    print(json.dumps({"milliseconds": results, f"to_{BASELINE}": ratios}))


if __name__ == "__main__":
    main()
