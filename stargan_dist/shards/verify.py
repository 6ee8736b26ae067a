"""Verify a set of shards: every byte, every sample and every image, against the index.

A shard is read once, from beginning to end, and cut into samples where the file beside it says.
Each piece must be the whole members of one sample, and zeros must follow the last: together that
is what makes a tar. So a damaged sample does not hide those after it, and no more of a shard is
held than one sample and one block.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from webdataset.tariterators import base_plus_ext

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.data import transforms
from stargan_dist.data.index import Index, Shard, read_index, read_samples, samples_name
from stargan_dist.errors import UserError
from stargan_dist.shards.process_pool import map_in_processes
from stargan_dist.storage import with_retries

END_BYTES = 2 * tarfile.BLOCKSIZE  # of zeros, at least, follow the last member of a tar
NOT_WHOLE = "no whole members of a tar: damaged headers, or wrong offsets beside the shard"


@dataclass(frozen=True)
class Task:
    """One shard to be checked, and what its samples should say of themselves."""

    url: str
    shard: Shard
    domain: str
    label: int | None  # None: the index does not list the domain


class Checked(NamedTuple):
    """What a check found: faults, each with the shard's name, and a hash of each sample's key."""

    faults: list[str]
    keys: np.ndarray  # uint64 (samples,); 0: unknown


def verify(url: str, processes: int = 1) -> list[str]:
    """Check all shards of a set.

    Args:
        url: of the set.
        processes: how many check. They do not change what is found, nor its order.

    Returns:
        The faults, for people: by shard and sample, then strays, then keys that occur twice.

    Raises:
        UserError: there is no index, or it cannot be read.
    """
    index = read_index(url)
    tasks = _tasks(url, index)
    total = sum(task.shard.samples for task in tasks)
    faults, keys = [], []
    with progress_bar(total, "images", description="verifying") as progress:
        results = map_in_processes(check_shard, tasks, processes)
        for task, result in zip(tasks, results, strict=True):
            faults += result.faults
            keys.append(result.keys)
            progress.update(task.shard.samples)
    names = [task.shard.name for task in tasks]
    return faults + _strays(url, index) + repeated_keys(names, keys)


def _tasks(url: str, index: Index) -> list[Task]:
    labels = {domain: label for label, domain in enumerate(index.domains)}
    return [
        Task(url, shard, domain, labels.get(domain))
        for domains in index.splits.values()
        for domain, shards in domains.items()
        for shard in shards
    ]


# One shard.


class _Hashed(io.RawIOBase):
    """A file that is read once from beginning to end, and hashed on the way."""

    def __init__(self, url: str) -> None:
        self._blocks = storage.read_blocks(url)
        self._rest = memoryview(b"")
        self._sha256 = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises OSError, whatever is wrong."""
        if not self._rest:
            self._fill()
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def _fill(self) -> None:
        try:
            block = next(self._blocks, b"")
        except OSError:
            raise
        except Exception as error:  # each protocol has errors of its own
            raise OSError(f"{type(error).__name__}: {error}") from error
        self._sha256.update(block)
        self.bytes += len(block)
        self._rest = memoryview(block)


def check_shard(task: Task) -> Checked:
    """Check one shard, the file beside it, and all its samples and images."""
    try:
        faults, keys = with_retries(partial(_read_shard, task))
    except FileNotFoundError:
        faults, keys = ["is missing"], np.zeros(0, np.uint64)
    except OSError as error:
        faults, keys = [f"cannot be read: {error}"], np.zeros(0, np.uint64)
    return Checked([_printable(f"{task.shard.name}: {fault}") for fault in faults], keys)


def _read_shard(task: Task) -> tuple[list[str], np.ndarray]:
    """Faults and hashes of the keys. Raises OSError where the shard cannot be read."""
    offsets, crc32, faults = _samples(task)
    hashed = _Hashed(storage.join(task.url, task.shard.name))
    stream = io.BufferedReader(hashed)
    keys = np.zeros(len(offsets) - 1, np.uint64)
    for number, (begin, end) in enumerate(pairwise(offsets)):
        data = stream.read(end - begin)
        if len(data) < end - begin:
            break
        key, found = check_sample(data, crc32[number] if crc32 else None, task)
        keys[number] = _hash(key) if key else 0
        if found:
            faults.append(f"sample {number}{f' ({key})' if key else ''}: {'; '.join(found)}")
    tail_is_whole = _is_end(stream)
    return faults + _whole_faults(hashed, task.shard, offsets, tail_is_whole), keys


def _printable(text: str) -> str:
    """One line, whatever bytes a damaged name holds."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _is_end(stream: BinaryIO) -> bool:
    """Read what is left: whether it is as a tar ends."""
    size, zeros = 0, True
    while block := stream.read(storage.BLOCK_BYTES):
        size += len(block)
        zeros = zeros and block.count(0) == len(block)
    return zeros and size >= END_BYTES


def _whole_faults(
    hashed: _Hashed, shard: Shard, offsets: list[int], tail_is_whole: bool
) -> list[str]:
    """What is wrong with a shard as a file, once all of it is read."""
    faults = []
    if hashed.bytes != shard.bytes:
        cut = sum(end > hashed.bytes for end in offsets[1:])
        lost = f": the last {cut} of {len(offsets) - 1} samples are cut off" if cut else ""
        faults.append(f"{hashed.bytes} bytes, in the index {shard.bytes}{lost}")
    elif hashed.sha256 != shard.sha256:
        faults.append("the bytes differ from their checksum in the index (SHA-256)")
    if hashed.bytes >= shard.bytes and not tail_is_whole:
        faults.append("the last sample is not followed by the end of a tar")
    return faults


def _hash(key: str) -> int:
    data = key.encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


# Where samples begin.


def _samples(task: Task) -> tuple[list[int], list[int] | None, list[str]]:
    """Offsets and checksums of the samples, and faults of the file that tells them.

    Where it cannot be used, the tar itself tells the offsets, and there are no checksums.
    """
    beside = samples_name(task.shard.name)
    faults, crc32 = [], None
    try:
        told = read_samples(task.url, task.shard.name)
        offsets, crc32 = told.offsets.tolist(), told.crc32.tolist()
        if not _plausible(offsets, crc32, task.shard.bytes):
            raise ValueError("offsets, checksums and the size of the tar do not fit each other")
    except FileNotFoundError:
        faults.append(f"{beside} is missing")
        offsets, crc32 = _walk(storage.join(task.url, task.shard.name)), None
    except (OSError, ValueError) as error:
        faults.append(f"{beside} cannot be used: {error!r}")
        offsets, crc32 = _walk(storage.join(task.url, task.shard.name)), None
    if len(offsets) - 1 != task.shard.samples:
        faults.append(f"{len(offsets) - 1} samples, in the index {task.shard.samples}")
    return offsets, crc32, faults


def _plausible(offsets: list[int], crc32: list[int], size: int) -> bool:
    if len(offsets) != len(crc32) + 1 or offsets[0] != 0 or offsets[-1] > size:
        return False
    return all(begin < end for begin, end in pairwise(offsets))


def _walk(url: str) -> list[int]:
    """Where each sample of a tar begins and the last one ends, by the headers of its members.

    Where they are damaged, the samples before that.
    """
    offsets, last = [0], None
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Hashed(url)), mode="r|") as tar:
            while member := tar.next():
                key, _ = base_plus_ext(member.name)
                if member.offset and key != last:
                    offsets.append(member.offset)
                last = key
            return [*offsets, tar.offset] if last else offsets
    except OSError:
        raise
    except Exception:  # tarfile raises nearly anything on damaged headers
        return offsets


# One sample.


def check_sample(data: bytes, crc32: int | None, task: Task) -> tuple[str | None, list[str]]:
    """The key of a sample, if it has one, and what is wrong with the sample.

    Args:
        data: the bytes of its members, headers and all.
        crc32: their checksum, if it is known.
    """
    found = []
    if crc32 is not None and zlib.crc32(data) != crc32:
        found.append("the bytes differ from their checksum (CRC-32)")
    try:
        key, image, facts = _parse(data)
    except UserError as error:
        return None, [*found, str(error)]
    return key, found + _facts_faults(facts, task) + _image_faults(image, task.shard)


def _members(data: bytes) -> list[tarfile.TarInfo]:
    """Raises UserError unless the data are whole members, all of them plain files."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members, end = tar.getmembers(), tar.offset
    except Exception as error:  # tarfile raises nearly anything on damaged headers
        raise UserError(f"{NOT_WHOLE} ({error})") from error
    if end != len(data):  # tarfile takes a damaged header after the first for the end
        raise UserError(NOT_WHOLE)
    for member in members:
        if not member.isreg() or member.issparse():
            raise UserError(f"{member.name!r} is not a plain file")
        if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
            raise UserError(f"{member.name!r} leads out of the tar")
    return members


def _parse(data: bytes) -> tuple[str, bytes, bytes]:
    """Key, image and JSON. Raises UserError unless there is one image and its JSON, no more."""
    members = _members(data)
    split = [base_plus_ext(member.name) for member in members]
    keys, are_json = {key for key, _ in split}, [suffix == "json" for _, suffix in split]
    if len(keys) != 1 or sorted(are_json) != [False, True]:
        names = ", ".join(repr(member.name) for member in members)
        raise UserError(f"one image and its json are expected, not {names}")
    contents = [data[m.offset_data : m.offset_data + m.size] for m in members]
    return keys.pop(), contents[are_json.index(False)], contents[are_json.index(True)]


def _facts_faults(text: bytes, task: Task) -> list[str]:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [f"the json cannot be parsed ({error})"]
    if not isinstance(facts, dict):
        return ["the json is not an object"]
    faults = [
        f"the json's {name} is {facts.get(name)!r}, in the index {value!r}"
        for name, value in (("domain", task.domain), ("label", task.label))
        if facts.get(name) != value
    ]
    if not isinstance(facts.get("path"), str):
        faults.append("the json has no path")
    return faults


def _image_faults(data: bytes, shard: Shard) -> list[str]:
    try:
        width, height = transforms.decode(data).size
    except UserError as error:
        return [f"the image cannot be decoded ({error})"]
    (narrow, wide), (low, high) = shard.widths, shard.heights
    if narrow <= width <= wide and low <= height <= high:
        return []
    return [
        f"the image has {width} × {height} pixels, "
        f"in the index {narrow} to {wide} × {low} to {high}"
    ]


# The whole set.


def _strays(url: str, index: Index) -> list[str]:
    """Tars that the index does not name."""
    named = {shard.name for shard in index.shards()}
    faults = []
    for split in sorted(index.splits):
        try:
            found = [f"{split}/{name}" for name in storage.list_names(storage.join(url, split))]
        except OSError as error:
            faults.append(f"{split}: cannot be listed: {error}")
            continue
        strays = [name for name in found if name.endswith(".tar") and name not in named]
        faults += [f"{name}: not in the index" for name in strays]
    return faults


def repeated_keys(names: list[str], keys: list[np.ndarray]) -> list[str]:
    """Keys that occur more than once: a line for each pair of shards.

    Args:
        names: of the shards.
        keys: for each shard, the hashes of its keys; 0: unknown. 24 bytes are needed for each.
    """
    begins = np.cumsum([0, *map(len, keys)])
    flat = np.concatenate([np.zeros(0, np.uint64), *keys])
    order = np.argsort(flat, kind="stable")
    ranked = flat[order]
    again = np.flatnonzero((ranked[1:] == ranked[:-1]) & (ranked[1:] != 0))
    first: dict[tuple[int, int], tuple[int, int]] = {}
    count: Counter[tuple[int, int]] = Counter()
    for later, earlier in sorted(
        zip(order[again + 1].tolist(), order[again].tolist(), strict=True)
    ):
        pair = _shard_of(begins, later), _shard_of(begins, earlier)
        first.setdefault(pair, (later - int(begins[pair[0]]), earlier - int(begins[pair[1]])))
        count[pair] += 1
    return [
        f"{names[a]}: {count[a, b]} of the keys of {names[b]} again: "
        f"sample {i} has that of sample {j} there{', and so on' if count[a, b] > 1 else ''}"
        for (a, b), (i, j) in sorted(first.items())
    ]


def _shard_of(begins: np.ndarray, sample: int) -> int:
    return int(np.searchsorted(begins, sample, "right")) - 1
