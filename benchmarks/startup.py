"""Time the start of training on a million samples: the first batch, a resume, a folder listing.

    python benchmarks/startup.py [--samples 1000000] [--shards 1000] [--workers 2]

The dataset is synthetic and has 10 domains. Each of its shards is a hard link to the same tar of
small JPEGs, so that it fits on a disk. Measured in a process that has imported everything:

- seconds from opening the index to the first batch of 8 through forked workers, at the beginning
  and in the middle of a pass;
- the memory that each worker does not share;
- as the baseline, torchvision's listing of folders with as many (empty) files;
- size and load time of an index of ten million samples in ten thousand shards.

The last line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torchvision.datasets.folder import make_dataset

from stargan_dist.config import DataConfig
from stargan_dist.data.index import (
    INDEX,
    Index,
    Shard,
    read_index,
    sample_table_name,
    to_json,
    write_index,
)
from stargan_dist.data.loading import iterate_batches, training_loader
from stargan_dist.data.skipped import SkippedSamples
from stargan_dist.data.sources import open_sources
from stargan_dist.data.stream import Slots
from stargan_dist.shards.build import build

DOMAINS = [f"domain{i}" for i in range(10)]
IMAGE_SIZE = 64
BATCH_SIZE = 8


def build_noise_shard(folder: Path, images: int) -> tuple[Path, Shard]:
    """Build one shard of noise images; returns its path and its entry of the index."""
    for domain in ("a", "b"):
        (folder / "images" / domain).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(images):
        pixels = rng.integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "a" / f"{i:06d}.jpg", quality=50)
    Image.fromarray(pixels).save(folder / "images" / "b" / "0.jpg")
    url = folder / "built"
    index = build(str(folder / "images"), str(url), val_fraction=0, shard_images=images)
    shard = index.splits["train"]["a"][0]
    return url / shard.name, shard


def synthetic_index(shards: int, like: Shard) -> Index:
    """Return an index of `shards` copies of a shard, distributed evenly over the domains."""
    per_domain = shards // len(DOMAINS)
    splits = {
        "train": {
            domain: [
                Shard(f"train/{label:04d}-{domain}-{i:06d}.tar", like.samples, like.bytes,
                      like.sha256, like.widths, like.heights)
                for i in range(per_domain)
            ]
            for label, domain in enumerate(DOMAINS)
        }
    }  # fmt: skip
    return Index(DOMAINS, splits, "synthetic")


def make_dataset_of_links(folder: Path, samples: int, shards: int) -> Path:
    """Write a dataset in which every shard is a hard link to the same tar."""
    tar, shard = build_noise_shard(folder, samples // shards)
    index, url = synthetic_index(shards, shard), folder / "dataset"
    (url / "train").mkdir(parents=True)
    for entry in index.shards():
        os.link(tar, url / entry.name)
        os.link(sample_table_name(str(tar)), url / sample_table_name(entry.name))
    write_index(str(url), index)
    return url


def first_batch(url: Path, step: int, workers: int) -> tuple[float, float]:
    """Return the seconds until the batch of a step arrives, and a worker's unshared MiB.

    The MiB are those of the worker with the most.
    """
    start = time.perf_counter()
    config = DataConfig(str(url), workers=workers)
    slots = Slots(open_sources(config, "train"), 0, IMAGE_SIZE, 16, BATCH_SIZE)
    loader = training_loader(slots, range(step, step + 1000), rank=0, world_size=1, workers=workers)
    stream = iterate_batches(loader, SkippedSamples())
    next(stream)
    seconds = time.perf_counter() - start
    for _ in range(20):
        next(stream)
    unshared = [child.memory_full_info().uss / 2**20 for child in psutil.Process().children()]
    stream.close()
    return seconds, max(unshared)


def time_folder_listing(folder: Path, samples: int) -> float:
    """Return the seconds that torchvision takes to list folders of as many files."""
    for domain in DOMAINS:
        (folder / "scan" / domain).mkdir(parents=True)
        for i in range(samples // len(DOMAINS)):
            (folder / "scan" / domain / f"{i:08d}.jpg").touch()
    labels = {domain: label for label, domain in enumerate(DOMAINS)}
    return seconds_of(lambda: make_dataset(str(folder / "scan"), labels, extensions=(".jpg",)))


def seconds_of(function: Callable[[], object]) -> float:
    """Call a function and return the seconds that it took."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure_large_index(folder: Path) -> dict[str, float]:
    """Measure MiB and load seconds of an index of ten million samples in ten thousand shards."""
    shard = Shard("", 1000, 2**26, "0" * 64, [512, 512], [512, 512])
    data = to_json(synthetic_index(10_000, shard))
    (folder / INDEX).write_bytes(data)
    seconds = seconds_of(lambda: read_index(str(folder)))
    return {"index_10m_mib": len(data) / 2**20, "index_10m_load_s": seconds}


def announce(stage: str) -> None:
    """Print a stage of the benchmark on stderr."""
    print(stage, file=sys.stderr, flush=True)


def measure(folder: Path, samples: int, shards: int, workers: int) -> dict[str, float]:
    """Measure everything; stages are announced on stderr."""
    announce(f"building {shards} shards with {samples} samples")
    url = make_dataset_of_links(folder, samples, shards)
    middle = samples // 2 // BATCH_SIZE
    announce("reading the first batch, then one in the middle of a pass")
    first_s, worker_mib = first_batch(url, 0, workers)
    resume_s, _ = first_batch(url, middle, workers)
    announce(f"creating and listing {samples} files")
    scan_s = time_folder_listing(folder, samples)
    return {
        "first_batch_s": first_s, "resume_s": resume_s, "scan_s": scan_s,
        "first_batch_ratio": scan_s / first_s, "worker_mib": worker_mib,
        **measure_large_index(folder),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument("--shards", type=int, default=1000, help="a multiple of 10 (default: 1000)")
    parser.add_argument("--workers", type=int, default=2, help="of the loader (default: 2)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), args.samples, args.shards, args.workers)
    print(f"{args.samples} samples in {args.shards} shards, {args.workers} workers")
    print(f"first batch {figures['first_batch_s']:.2f} s, mid-pass {figures['resume_s']:.2f} s,")
    print(f"listing folders {figures['scan_s']:.2f} s; {figures['worker_mib']:.0f} MiB per worker")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
