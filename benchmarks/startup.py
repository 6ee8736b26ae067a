"""How long a million samples keep a run waiting: the first batch, a resume, and a folder scan.

    python benchmarks/startup.py [--samples 1000000] [--shards 1000] [--workers 2]

A made-up set of 10 domains: every shard is a hard link to one and the same tar of small JPEGs, so
that the set fits on a disk. Measured, in a process that has imported everything: from opening the
index to the first batch of 8 through forked workers, at the beginning and in the middle of a pass;
the memory that belongs to each worker alone; and, as the baseline, torchvision's own listing of
folders with as many (empty) files. Also the size and the load time of an index of ten million
samples in ten thousand shards. Last line: JSON.
"""

import argparse
import json
import os
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
from stargan_dist.data.skipped import SkippedSamples
from stargan_dist.data.sources import open_sources
from stargan_dist.data.stream import Slots, iterate_batches, training_loader
from stargan_dist.shards.build import build

DOMAINS = [f"domain{i}" for i in range(10)]
IMAGE_SIZE = 64
BATCH_SIZE = 8


def draw_shard(folder: Path, images: int) -> tuple[Path, Shard]:
    """Build one shard of noise images; returns where it lies."""
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


def made_up_index(shards: int, like: Shard) -> Index:
    """An index of as many shards, shared out among the domains."""
    each = shards // len(DOMAINS)
    splits = {
        "train": {
            domain: [
                Shard(f"train/{label:04d}-{domain}-{i:06d}.tar", like.samples, like.bytes,
                      like.sha256, like.widths, like.heights)
                for i in range(each)
            ]
            for label, domain in enumerate(DOMAINS)
        }
    }  # fmt: skip
    return Index(DOMAINS, splits, "made up")


def make_set(folder: Path, samples: int, shards: int) -> Path:
    tar, shard = draw_shard(folder, samples // shards)
    index = made_up_index(shards, shard)
    (folder / "set" / "train").mkdir(parents=True)
    for row in index.shards():
        os.link(tar, folder / "set" / row.name)
        os.link(sample_table_name(str(tar)), folder / "set" / sample_table_name(row.name))
    write_index(str(folder / "set"), index)
    return folder / "set"


def first_batch(url: Path, step: int, workers: int) -> tuple[float, float]:
    """Seconds until the batch of a step is there, and the MiB that each worker has to itself."""
    began = time.perf_counter()
    config = DataConfig(str(url), workers=workers)
    slots = Slots(open_sources(config, "train"), 0, IMAGE_SIZE, 16, BATCH_SIZE)
    loader = training_loader(slots, range(step, step + 1000), rank=0, world_size=1, workers=workers)
    stream = iterate_batches(loader, SkippedSamples())
    next(stream)
    seconds = time.perf_counter() - began
    for _ in range(20):
        next(stream)
    own = [child.memory_full_info().uss / 2**20 for child in psutil.Process().children()]
    stream.close()
    return seconds, max(own)


def scan(folder: Path, samples: int) -> float:
    """Seconds that torchvision takes to list folders of as many files."""
    for domain in DOMAINS:
        (folder / "scan" / domain).mkdir(parents=True)
        for i in range(samples // len(DOMAINS)):
            (folder / "scan" / domain / f"{i:08d}.jpg").touch()
    labels = {domain: label for label, domain in enumerate(DOMAINS)}
    return timed(lambda: make_dataset(str(folder / "scan"), labels, extensions=(".jpg",)))


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def large_index(folder: Path) -> dict[str, float]:
    """MiB and load seconds of an index of ten million samples in ten thousand shards."""
    shard = Shard("", 1000, 2**26, "0" * 64, [512, 512], [512, 512])
    data = to_json(made_up_index(10_000, shard))
    (folder / INDEX).write_bytes(data)
    seconds = timed(lambda: read_index(str(folder)))
    return {"index_10m_mib": len(data) / 2**20, "index_10m_load_s": seconds}


def measure(folder: Path, samples: int, shards: int, workers: int) -> dict[str, float]:
    url = make_set(folder, samples, shards)
    middle = samples // 2 // BATCH_SIZE
    first_s, worker_mib = first_batch(url, 0, workers)
    resume_s, _ = first_batch(url, middle, workers)
    scan_s = scan(folder, samples)
    return {
        "first_batch_s": first_s, "resume_s": resume_s, "scan_s": scan_s,
        "first_batch_ratio": scan_s / first_s, "worker_mib": worker_mib, **large_index(folder),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=1000, help="a multiple of 10")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), args.samples, args.shards, args.workers)
    print(f"{args.samples} samples in {args.shards} shards, {args.workers} workers")
    print(f"first batch {figures['first_batch_s']:.2f} s, in mid-pass {figures['resume_s']:.2f} s,")
    print(f"listing folders {figures['scan_s']:.2f} s; {figures['worker_mib']:.0f} MiB a worker")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
