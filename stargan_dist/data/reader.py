"""Single samples out of shards: by range of bytes through fsspec, parsed by WebDataset.

The index knows where each sample lies, so a reader fetches exactly those that it is asked for.
"""

import io
import json
import tarfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_expander

from stargan_dist import storage
from stargan_dist.config import DataConfig
from stargan_dist.data import transforms
from stargan_dist.data.cache import ShardCache
from stargan_dist.data.index import Index, Samples, Shard, read_index, read_samples
from stargan_dist.data.order import WINDOW_SHARDS, Location
from stargan_dist.errors import UserError

STREAMS = 3  # sources, references, second references


@dataclass(frozen=True)
class Sample:
    """One image as stored, and what the builder wrote beside it."""

    key: str
    image: bytes
    facts: dict[str, Any]


@lru_cache(maxsize=1024)
def _samples(url: str, shard_name: str, _fingerprint: str) -> Samples:
    return read_samples(url, shard_name)


class ShardReader:
    """Random access to the samples of one split. Picklable, and safe to be forked.

    Args:
        url: of the set.
        cache: where whole shards are kept; None: each sample is fetched by its range of bytes.
    """

    def __init__(self, url: str, index: Index, split: str, cache: ShardCache | None = None) -> None:
        self.url, self.index, self.split, self.cache = url, index, split, cache
        self._fingerprint = index.fingerprint
        self._starts = [np.cumsum([0, *counts]) for counts in index.counts(split)]
        # Every try of a read that fails takes its time, and a step waits for all ranks.
        self._unreachable: dict[str, str] = {}

    def shard(self, location: Location) -> Shard:
        domain = self.index.domains[location.domain]
        return self.index.splits[self.split][domain][location.shard]

    def try_again(self) -> None:
        """Forget which shards could not be reached."""
        self._unreachable.clear()

    def locate(self, domain: int, number: int) -> Location:
        """Where an image of a domain lies, by its number in the order of the shards."""
        starts = self._starts[domain]
        shard = int(np.searchsorted(starts, number, side="right")) - 1
        return Location(domain, shard, number - int(starts[shard]))

    def size(self, domain: int) -> int:
        """The number of images of a domain."""
        return int(self._starts[domain][-1])

    def read(self, location: Location) -> Sample:
        """Fetch one sample.

        Raises:
            UserError: the shard cannot be read or does not hold what the index says.
        """
        shard = self.shard(location)
        where = f"sample {location.sample} of shard {storage.join(self.url, shard.name)}"
        try:
            return self._read(shard, location.sample)
        except DAMAGE as error:
            remedy = "restore the shard or build the set again"
            raise UserError(f"cannot read {where}: {_told(error)}; {remedy}") from error
        except OSError as error:
            raise UserError(f"cannot read {where}: {_told(error)}") from error

    def _read(self, shard: Shard, number: int) -> Sample:
        try:
            return _parse(self._checked_bytes(shard, number), shard.name)
        except DamagedError:
            if not self.cache:
                raise
            # It may be our copy alone that is damaged.
            self.cache.discard(storage.join(self.url, shard.name), shard)
            return _parse(self._checked_bytes(shard, number), shard.name)

    def _checked_bytes(self, shard: Shard, number: int) -> bytes:
        samples = _samples(self.url, shard.name, self._fingerprint)
        begin, end = samples.offsets[number : number + 2].tolist()
        return _checked(self._fetch(shard, begin, end), end - begin, int(samples.crc32[number]))

    def _fetch(self, shard: Shard, begin: int, end: int) -> bytes:
        """Raises OSError, at once if the shard could not be reached before."""
        if shard.name in self._unreachable:
            raise OSError(f"{self._unreachable[shard.name]} (before; not tried again)")
        url = storage.join(self.url, shard.name)
        try:
            if self.cache:
                return self.cache.read_range(url, shard, begin, end)
            return storage.read_range(url, begin, end)
        except OSError as error:
            self._unreachable[shard.name] = _told(error)
            raise

    def image(self, location: Location) -> tuple[Image.Image, Sample]:
        """The decoded RGB image of a sample, and the sample."""
        sample = self.read(location)
        try:
            return transforms.decode(sample.image), sample
        except UserError as error:
            raise UserError(f"sample {sample.key} of {self.url}: {error}") from error


class DamagedError(OSError):
    """The bytes are not those that the builder wrote."""


# What only another shard mends. WebDataset raises ValueError, tarfile TarError.
DAMAGE = (DamagedError, FileNotFoundError, ValueError, KeyError, IndexError, tarfile.TarError)


def _told(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, FileNotFoundError):
        return f"no such file as {error.filename or error}"
    return " ".join(str(error).split()) or repr(error)


def _checked(data: bytes, size: int, crc32: int) -> bytes:
    """Raises DamagedError unless the bytes are those that the builder wrote."""
    if len(data) > size:
        raise OSError("the server does not serve ranges of bytes: name a folder as data.cache")
    if len(data) < size:
        raise DamagedError("it is truncated")
    if zlib.crc32(data) != crc32:
        raise DamagedError("it is damaged, a checksum is wrong")
    return data


def _parse(data: bytes, url: str) -> Sample:
    """The members of one sample are a tar of their own: WebDataset's stages take it as a stream."""
    members = tar_file_expander([{"url": url, "stream": io.BytesIO(data)}])
    (row,) = group_by_keys(members)
    facts = json.loads(row.pop("json"))
    (suffix,) = (name for name in row if not name.startswith("__"))
    return Sample(row["__key__"], row[suffix], facts)


def open_readers(config: DataConfig, split: str) -> list[ShardReader]:
    """The readers of a split of each data set, by ranges or through the cache, as the
    configuration says.

    Raises:
        UserError: there are no shards; the cache is too small to be of use, or not writable.
    """
    indexes = {source.shards: read_index(source.shards) for source in config.sets.values()}
    cache = _cache(config, sum(working_set_bytes(index, split) for index in indexes.values()))
    return [
        ShardReader(source.shards, indexes[source.shards], split, cache)
        for source in config.sets.values()
    ]


def open_reader(config: DataConfig, split: str) -> ShardReader:
    """As `open_readers`, of what has a single data set."""
    (reader,) = open_readers(config, split)
    return reader


def _cache(config: DataConfig, wanted: int) -> ShardCache | None:
    """The cache of the configuration, for shards of so many bytes that are read from at once."""
    if not config.cache:
        return None
    storage.check_writable(config.cache)
    limit = int(config.cache_gib * 2**30)
    if limit < wanted:
        raise UserError(
            f"data.cache_gib: {config.cache_gib} GiB cannot hold the {wanted / 2**30:.1f} GiB of "
            "shards that are read from at one time, and each would be downloaded again and again: "
            "raise it, or leave data.cache empty"
        )
    return ShardCache(config.cache, limit)


def working_set_bytes(index: Index, split: str) -> int:
    """Bytes of the shards that training reads from at one time, at most.

    Each stream of each domain reads from one window of shards.
    """
    windows = (
        STREAMS * sum(sorted((shard.bytes for shard in shards), reverse=True)[:WINDOW_SHARDS])
        for shards in index.splits.get(split, {}).values()
    )
    whole = sum(s.bytes for shards in index.splits.get(split, {}).values() for s in shards)
    return min(sum(windows), whole)


def check_split(index: Index, split: str, minimum: int, url: str) -> None:
    """Raises UserError if a domain has too few images in a split."""
    for domain, counts in zip(index.domains, index.counts(split), strict=True):
        if sum(counts) < minimum:
            raise UserError(
                f"{url}: domain {domain} has {sum(counts)} images in split {split}, "
                f"at least {minimum} are needed: add images and build the shards again"
            )


@dataclass(frozen=True)
class LoadedSplit:
    """Images held in memory, without augmentation.

    images uint8 (N, 3, size, size), labels int64 (N,) (or as `Batch` has them), paths relative to
    the source as built.
    """

    images: Tensor
    labels: Tensor
    paths: list[str]
    domains: list[str]


def load_split(
    reader: ShardReader,
    size: int,
    *,
    first: int = 0,
    per_domain: int | None = None,
    domains: int | None = None,
) -> LoadedSplit:
    """Read images of each domain of a split, in the order of the shards.

    Args:
        first: number of the first image of each domain; beyond the last, it wraps around.
        per_domain: how many of each domain; None: all.
        domains: only the first so many domains; None: all.
    """
    images, labels, paths = [], [], []
    for domain in range(len(reader.index.domains[:domains])):
        size_of_domain = reader.size(domain)
        for i in range(size_of_domain if per_domain is None else per_domain):
            image, sample = reader.image(reader.locate(domain, (first + i) % size_of_domain))
            images.append(transforms.fit(image, size))
            labels.append(domain)
            paths.append(sample.facts["path"])
    stacked = np.stack(images) if images else np.zeros((0, 3, size, size), np.uint8)
    return LoadedSplit(
        torch.from_numpy(stacked),
        torch.tensor(labels, dtype=torch.int64),
        paths,
        reader.index.domains[:domains],
    )
