"""Verify a dataset: check every byte, sample and image against the index.

Each shard is read once, from beginning to end, and cut into samples at the offsets in its sample
index, the file NAME.json beside NAME.tar. Each piece must consist of the whole members of one
sample, and zeros must follow the last piece. Together these checks establish that the file is a
valid tar. A damaged sample does not hide the samples after it. At most one sample and one block of
a shard are in memory at a time, and BLOCKS_AHEAD of a far store, which are read ahead.
"""

import hashlib
import io
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from webdataset.tariterators import base_plus_ext

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.data import transforms
from stargan_dist.data.index import (
    MAX_SAMPLE_BYTES,
    Index,
    Shard,
    read_index,
    read_sample_table,
    sample_table_name,
)
from stargan_dist.data.sample import BLOCK, parse_header, parse_metadata, split_sample
from stargan_dist.errors import UserError, printable
from stargan_dist.shards.process_pool import map_in_processes
from stargan_dist.storage import with_retries

BLOCKS_AHEAD = 4  # of 8 MiB, sample tables among them
MAX_ANNOUNCED = 2**17  # blocks, a tebibyte: an index may claim shards of any size
MIN_END_BYTES = 2 * tarfile.BLOCKSIZE  # zeros after the last member of a tar, at least


@dataclass(frozen=True)
class VerifyTask:
    """A shard to check, and the domain and label that its samples must have."""

    url: str
    shard: Shard
    domain: str
    label: int | None  # None: the index does not list the domain


class VerifyResult(NamedTuple):
    """The faults of a shard, each prefixed by its name, and a hash of each sample's key."""

    faults: list[str]
    keys: np.ndarray  # uint64 (samples,); 0: unknown


def verify(url: str, num_processes: int = 1) -> list[str]:
    """Check all shards of a dataset.

    Args:
        url: folder or URL of the shards.
        num_processes: number of checking processes. It does not change the result.

    Returns:
        The faults as lines of text: those of shards and samples in the order of the index, then
        stray tars, then repeated keys.

    Raises:
        UserError: the index is missing or cannot be read.
    """
    index = read_index(url)
    tasks = _plan_tasks(url, index)
    total = sum(task.shard.samples for task in tasks)
    faults, keys = [], []
    with (
        progress_bar(total, "images", description="verifying") as progress,
        _blocks_ahead(tasks) as ahead,
    ):
        check = partial(_verify_shard, ahead) if num_processes == 1 else verify_shard
        results = map_in_processes(check, tasks, num_processes)
        for task, result in zip(tasks, results, strict=True):
            faults += result.faults
            keys.append(result.keys)
            progress.update(task.shard.samples)
    names = [task.shard.name for task in tasks]
    return faults + _stray_tars(url, index) + repeated_keys(names, keys)


def _plan_tasks(url: str, index: Index) -> list[VerifyTask]:
    labels = {domain: label for label, domain in enumerate(index.domains)}
    return [
        VerifyTask(url, shard, domain, labels.get(domain))
        for domains in index.splits.values()
        for domain, shards in domains.items()
        for shard in shards
    ]


# One shard.


def _blocks_ahead(tasks: Sequence[VerifyTask]) -> storage.Ahead:
    """Return the sample table and the blocks of each shard, to be read in this order."""
    files = (
        file
        for task in tasks
        for file in (
            (storage.join(task.url, sample_table_name(task.shard.name)), 1),
            (storage.join(task.url, task.shard.name), task.shard.bytes),
        )
    )
    blocks = (block for url, size in files for block in storage.blocks_of(url, size))
    return storage.Ahead([*islice(blocks, MAX_ANNOUNCED)], BLOCKS_AHEAD)


def verify_shard(task: VerifyTask) -> VerifyResult:
    """Check a shard, its sample table, and all its samples and images."""
    with _blocks_ahead([task]) as ahead:
        return _verify_shard(ahead, task)


def _verify_shard(ahead: storage.Ahead, task: VerifyTask) -> VerifyResult:
    try:
        faults, keys = with_retries(partial(_read_shard, task, ahead))
    except FileNotFoundError:
        faults, keys = ["is missing"], np.zeros(0, np.uint64)
    except OSError as error:
        faults, keys = [f"cannot be read: {error}"], np.zeros(0, np.uint64)
    return VerifyResult([printable(f"{task.shard.name}: {fault}") for fault in faults], keys)


def _read_shard(task: VerifyTask, ahead: storage.Ahead) -> tuple[list[str], np.ndarray]:
    """Return the faults of a shard and the hashes of its keys.

    Raises:
        OSError: the shard cannot be read.
    """
    offsets, crc32, faults = _locate_samples(task, ahead)
    reader = _HashingReader(
        storage.read_blocks(storage.join(task.url, task.shard.name), ahead.read)
    )
    stream = io.BufferedReader(reader)
    keys = np.zeros(len(offsets) - 1, np.uint64)
    for number, (begin, end) in enumerate(pairwise(offsets)):
        data = stream.read(end - begin)
        if len(data) < end - begin:
            break
        key, sample_faults = verify_sample(data, crc32[number] if crc32 else None, task)
        keys[number] = _hash_key(key) if key else 0
        if sample_faults:
            name = f"sample {number}{f' ({key})' if key else ''}"
            faults.append(f"{name}: {'; '.join(sample_faults)}")
    has_tar_end = _is_tar_end(stream)
    return faults + _file_faults(reader, task.shard, offsets, has_tar_end), keys


def _hash_key(key: str) -> int:
    data = key.encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


# The file.


class _HashingReader(io.RawIOBase):
    """The blocks of a file, read once, from beginning to end, and hashed at the same time."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._unread = memoryview(b"")
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """The SHA-256 (hex) of the bytes fetched so far."""
        return self._sha256.hexdigest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer. All errors are raised as OSError."""
        if not self._unread:
            self._fetch()
        size = min(len(buffer), len(self._unread))
        buffer[:size], self._unread = self._unread[:size], self._unread[size:]
        return size

    def _fetch(self) -> None:
        try:
            block = next(self._blocks, b"")
        except OSError:
            raise
        except Exception as error:  # each protocol has its own exceptions
            raise OSError(f"{type(error).__name__}: {error}") from error
        self._sha256.update(block)
        self.bytes += len(block)
        self._unread = memoryview(block)


def _is_tar_end(stream: BinaryIO) -> bool:
    """Read the rest of a stream and return True if it is a valid end of a tar."""
    size, zeros = 0, True
    while block := stream.read(storage.BLOCK_BYTES):
        size += len(block)
        zeros = zeros and block.count(0) == len(block)
    return zeros and size >= MIN_END_BYTES


def _file_faults(
    reader: _HashingReader, shard: Shard, offsets: list[int], has_tar_end: bool
) -> list[str]:
    """Check size, checksum and end of a shard that has been read completely."""
    faults = []
    if reader.bytes != shard.bytes:
        cut = sum(end > reader.bytes for end in offsets[1:])
        lost = f": the last {cut} of {len(offsets) - 1} samples are cut off" if cut else ""
        faults.append(f"{reader.bytes} bytes, but {shard.bytes} in the index{lost}")
    elif reader.sha256 != shard.sha256:
        faults.append("the bytes differ from their checksum in the index (SHA-256)")
    if reader.bytes >= shard.bytes and not has_tar_end:
        faults.append("the last sample is not followed by the end of a tar")
    return faults


# Positions of the samples.


def _locate_samples(
    task: VerifyTask, ahead: storage.Ahead
) -> tuple[list[int], list[int] | None, list[str]]:
    """Return the offsets and checksums of the samples, and the faults of the sample table.

    If the sample table cannot be used, the offsets come from the tar, and there are no checksums.
    """
    name = sample_table_name(task.shard.name)
    faults, crc32 = [], None
    try:
        samples = read_sample_table(task.url, task.shard, ahead.read)
        offsets, crc32 = samples.offsets.tolist(), samples.crc32.tolist()
    except FileNotFoundError:
        faults.append(f"{name} is missing")
        offsets, crc32 = _scan_tar(storage.join(task.url, task.shard.name)), None
    except (OSError, UserError) as error:
        faults.append(str(error) if isinstance(error, UserError) else f"{name}: {error}")
        offsets, crc32 = _scan_tar(storage.join(task.url, task.shard.name)), None
    if len(offsets) - 1 != task.shard.samples:
        faults.append(f"{len(offsets) - 1} samples, but {task.shard.samples} in the index")
    return offsets, crc32, faults


def _scan_tar(url: str) -> list[int]:
    """Find the offsets of the samples of a tar, and of the end of the last one, from its headers.

    The list ends before the first damaged header.
    """
    stream = io.BufferedReader(_HashingReader(storage.read_blocks(url)))
    offsets, offset, last_key = [0], 0, None
    with suppress(UserError):  # at the end, or at a damaged header
        while offset - offsets[-1] <= MAX_SAMPLE_BYTES:
            member = parse_header(stream.read(BLOCK), offset)
            key, _ = base_plus_ext(member.name)
            if offset and key != last_key:
                offsets.append(offset)
            _skip(stream, member.end - member.begin)
            last_key, offset = key, member.end
    return [*offsets, offset] if offset else offsets


def _skip(stream: BinaryIO, size: int) -> None:
    """Read over bytes, or to the end of the stream."""
    while size and (block := stream.read(min(size, storage.BLOCK_BYTES))):
        size -= len(block)


# One sample.


def verify_sample(data: bytes, crc32: int | None, task: VerifyTask) -> tuple[str | None, list[str]]:
    """Check a sample and return its key, or None if it has none, and its faults.

    Args:
        data: the bytes of its members, including headers and padding.
        crc32: their checksum, or None if it is unknown.
    """
    faults = []
    if crc32 is not None and zlib.crc32(data) != crc32:
        faults.append("the bytes differ from their checksum (CRC-32)")
    try:
        key, image, metadata = split_sample(data)
    except UserError as error:
        return None, [*faults, str(error)]
    return key, faults + _metadata_faults(metadata, task) + _image_faults(image, task.shard)


def _metadata_faults(text: bytes, task: VerifyTask) -> list[str]:
    try:
        metadata = parse_metadata(text)
    except UserError as error:
        return [str(error)]
    return [
        f"the JSON's {name} is {found!r:.200}, but {expected!r} in the index"
        for name, found, expected in (
            ("domain", metadata.domain, task.domain),
            ("label", metadata.label, task.label),
        )
        if found != expected
    ]


def _image_faults(data: bytes, shard: Shard) -> list[str]:
    try:
        width, height = transforms.decode(data).size
    except UserError as error:
        return [f"the image cannot be decoded ({error})"]
    (min_width, max_width), (min_height, max_height) = shard.widths, shard.heights
    if min_width <= width <= max_width and min_height <= height <= max_height:
        return []
    return [
        f"the image has {width} × {height} pixels, but "
        f"{min_width} to {max_width} × {min_height} to {max_height} in the index"
    ]


# All shards.


def _stray_tars(url: str, index: Index) -> list[str]:
    """Report tars that the index does not name."""
    indexed = {shard.name for shard in index.shards()}
    faults = []
    for split in sorted(index.splits):
        try:
            names = [f"{split}/{name}" for name in storage.list_names(storage.join(url, split))]
        except OSError as error:
            faults.append(f"{split}: cannot be listed: {error}")
            continue
        strays = [name for name in names if name.endswith(".tar") and name not in indexed]
        faults += [f"{name}: not in the index" for name in strays]
    return faults


def repeated_keys(names: list[str], keys: list[np.ndarray]) -> list[str]:
    """Report keys that occur more than once, with one line for each pair of shards.

    It takes 24 bytes of memory per key.

    Args:
        names: names of the shards.
        keys: for each shard, the hashes of its keys; 0: unknown.
    """
    starts = np.cumsum([0, *map(len, keys)])
    hashes = np.concatenate([np.zeros(0, np.uint64), *keys])
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    repeats = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0))
    first: dict[tuple[int, int], tuple[int, int]] = {}
    counts: Counter[tuple[int, int]] = Counter()
    for later, earlier in sorted(
        zip(order[repeats + 1].tolist(), order[repeats].tolist(), strict=True)
    ):
        a, b = _find_shard(starts, later), _find_shard(starts, earlier)
        first.setdefault((a, b), (later - int(starts[a]), earlier - int(starts[b])))
        counts[a, b] += 1
    return [
        f"{names[a]}: repeats keys of {names[b]} ({counts[a, b]} in all), first: "
        f"sample {i} has the key of sample {j} there"
        for (a, b), (i, j) in sorted(first.items())
    ]


def _find_shard(starts: np.ndarray, sample: int) -> int:
    """Return the number of the shard that holds a sample, counted over all shards."""
    return int(np.searchsorted(starts, sample, "right")) - 1
