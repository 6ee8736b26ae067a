"""The index of a dataset of shards: `index.json` in its folder, and one JSON file per shard.

`index.json` lists domains, splits and shards. The byte offsets and checksums of a shard's samples
are in a file beside the shard (`NAME.json`), which a reader fetches when it first needs it.
The index of ten million samples in ten thousand shards therefore stays at a few MB.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np

from stargan_dist import storage
from stargan_dist.errors import UserError, explained, printable

INDEX = "index.json"
SPLITS = ("train", "val", "test")
VERSION = 2

# Names of shards as the builder writes them: SPLIT/NNNN-slug-NNNNNN.tar. No other file is opened,
# written or removed, whatever an index says.
SHARD_NAME = re.compile(r"(train|val|test)/[0-9]{4,9}-[A-Za-z0-9_-]{1,40}-[0-9]{6,12}\.tar")

# Bounds of what is read, far above all that the builder writes.
MAX_INDEX_BYTES = 2**29  # ten thousand shards take 3 MiB; each image left out about 100 bytes
MAX_NAME = 4096  # characters of a domain, as of a path on Linux
MAX_SAMPLES = 2**24  # of a shard; the builder's --shard-images has the same limit
MAX_SAMPLE_BYTES = 2**30  # images of the largest size take half of it uncompressed
MAX_PIXELS_OF_SIDE = 2**26
JSON_BYTES_PER_SAMPLE = 64  # in a sample table: an offset and a CRC-32 take at most 34
REMEDY = "restore the file, or rebuild the shards"


@dataclass(frozen=True)
class Shard:
    """One tar file with samples of one domain.

    Attributes:
        name: path relative to the dataset's folder.
        samples: number of samples.
        bytes: size of the tar.
        sha256: hash of the tar, hexadecimal.
        widths: smallest and largest width of its images, in pixels.
        heights: smallest and largest height of its images, in pixels.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    widths: list[int] = field(hash=False)
    heights: list[int] = field(hash=False)

    @property
    def mean_sample_bytes(self) -> int:
        """Estimate of the size of a sample."""
        return self.bytes // self.samples


@dataclass(frozen=True)
class Index:
    """The contents of a dataset of shards.

    Attributes:
        domains: names, in label order.
        splits: split -> domain -> shards.
        source: origin of the images.
        encoding: parameters with which the images were re-encoded; None: original bytes.
        skipped: files that were left out, with the reasons.
    """

    domains: list[str]
    splits: dict[str, dict[str, list[Shard]]]
    source: str
    encoding: dict[str, Any] | None = None
    skipped: list[str] = field(default_factory=list)

    def counts(self, split: str) -> tuple[tuple[int, ...], ...]:
        """Return, for each domain, the number of samples of each shard."""
        shards = self.splits.get(split, {})
        return tuple(tuple(s.samples for s in shards.get(d, [])) for d in self.domains)

    def shards(self) -> list[Shard]:
        """Return all shards, ordered by split, domain and name."""
        return [s for split in self.splits.values() for shards in split.values() for s in shards]

    def of_domains(self, domains: list[str]) -> "Index":
        """Return the index of these domains alone, whose labels follow their order.

        Raises:
            UserError: there is no such domain.
        """
        if unknown := [name for name in domains if name not in self.domains]:
            missing, names = printable(unknown[0], 200), printable(", ".join(self.domains), 1000)
            raise UserError(f"there is no domain {missing}; the domains are {names}")
        splits = {
            split: {name: shards[name] for name in domains if name in shards}
            for split, shards in self.splits.items()
        }
        return replace(self, domains=domains, splits=splits)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of domains and shards: identifies samples and their order, at any URL."""
        fields = asdict(self)
        text = json.dumps([fields["domains"], fields["splits"]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class SampleTable(NamedTuple):
    """Positions and checksums of the n samples of one shard."""

    offsets: np.ndarray  # int64 (n + 1,): first byte of each sample, and the end of the last one
    crc32: np.ndarray  # uint32 (n,)


def to_json(index: Index) -> bytes:
    """Serialise an index as `index.json`."""
    fields = storage.sealed({"version": VERSION, **asdict(index)})
    return (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()


def write_index(url: str, index: Index) -> None:
    """Write the index of the dataset at `url`."""
    storage.write_bytes(storage.join(url, INDEX), to_json(index))


def read_index(url: str) -> Index:
    """Read the index of the dataset at `url`.

    Raises:
        UserError: it is missing, cannot be read, or is invalid.
    """
    index_url = storage.join(url, INDEX)
    try:
        return from_json(index_url, storage.read_bytes(index_url, MAX_INDEX_BYTES))
    except FileNotFoundError as error:
        raise UserError(
            f"no shards at {url} ({INDEX} is missing): "
            f"build them with `python -m stargan_dist.shards build IMAGES {url}`"
        ) from error
    except OSError as error:
        raise explained(f"cannot read {index_url}: {error}", error) from error


# Formats of the files. Parsing checks everything that later code relies on.

Pixels = Annotated[int, msgspec.Meta(ge=1, le=MAX_PIXELS_OF_SIDE)]
Offset = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Checksum = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Range = Annotated[list[Pixels], msgspec.Meta(min_length=2, max_length=2)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]


class ShardFields(msgspec.Struct, forbid_unknown_fields=True):
    """The fields of a `Shard` in JSON."""

    name: str
    samples: Annotated[int, msgspec.Meta(ge=1, le=MAX_SAMPLES)]
    bytes: Offset
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    widths: Range
    heights: Range

    def shard(self, origin: str) -> Shard:
        """Return the shard.

        Raises:
            UserError: its name is not one that the builder gives.
        """
        if not SHARD_NAME.fullmatch(self.name):
            raise UserError(
                f"{origin} names the shard {self.name[:200]!a}, which is not of the form "
                f"SPLIT/NNNN-DOMAIN-NNNNNN.tar: {REMEDY}"
            )
        return Shard(**msgspec.structs.asdict(self))


class _IndexVersion(msgspec.Struct):
    version: int


class _IndexFields(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    domains: Annotated[list[Name], msgspec.Meta(min_length=1)]
    splits: dict[Literal["train", "val", "test"], dict[Name, list[ShardFields]]]
    source: str
    encoding: dict[str, int | str] | None = None
    skipped: list[str] = []
    sha256: str = ""  # indexes of 0.1.0 have none


class _SampleTableFields(msgspec.Struct, forbid_unknown_fields=True):
    offsets: list[Offset]
    crc32: list[Checksum]


def from_json(origin: str, data: bytes) -> Index:
    """Parse `index.json`.

    Args:
        origin: where the data comes from, for error messages.
        data: contents of the file.

    Raises:
        UserError: the data is not a valid index, or is of another version.
    """
    version = storage.decode_json(data, _IndexVersion, origin, REMEDY).version
    if version != VERSION:
        raise UserError(
            f"{origin} has version {version}, but this program reads version {VERSION}: "
            "rebuild the shards"
        )
    fields = storage.decode_json(data, _IndexFields, origin, REMEDY)
    splits: dict[str, dict[str, list[Shard]]] = {
        split: {domain: [s.shard(origin) for s in shards] for domain, shards in domains.items()}
        for split, domains in fields.splits.items()
    }
    index = Index(fields.domains, splits, fields.source, fields.encoding, fields.skipped)
    _check_names(origin, index)
    if fields.sha256:
        storage.check_seal(data, origin, REMEDY)
    return index


def _check_names(origin: str, index: Index) -> None:
    """Check that no domain and no shard occurs twice, and that shards are in the split's folder.

    Raises:
        UserError: a name does or is not.
    """
    shards = [shard.name for shard in index.shards()]
    for kind, names in (("domain", index.domains), ("shard", shards)):
        if repeated := _first_repeated(names):
            raise UserError(f"{origin} names the {kind} {printable(repeated, 200)} twice: {REMEDY}")
    for split, domains in index.splits.items():
        for shard in (shard for shards_of_domain in domains.values() for shard in shards_of_domain):
            if not shard.name.startswith(f"{split}/"):
                raise UserError(f"{origin} has the shard {shard.name} in split {split}: {REMEDY}")


def _first_repeated(names: list[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def slug(label: int, domain: str) -> str:
    """Return a domain's name for keys and files, which no other domain of the dataset has."""
    return f"{label:04d}-{safe_name(domain)}"


def safe_name(domain: str) -> str:
    """Return a domain's name for folders. Names that differ little may become equal.

    Dots, spaces and slashes are replaced: they would confuse WebDataset or shells.
    """
    return re.sub(r"[^A-Za-z0-9_-]", "_", domain)[:40]


def sample_table_name(shard_name: str) -> str:
    """Return the name of the file with a shard's sample table."""
    return shard_name.removesuffix(".tar") + ".json"


def read_sample_table(
    url: str, shard: Shard, read: Callable[[str, int, int], bytes] = storage.read_once
) -> SampleTable:
    """Read the sample table of a shard of the dataset at `url`.

    Args:
        url: folder or URL of the dataset.
        shard: the shard.
        read: reads as `storage.read_once` does.

    Raises:
        OSError: it cannot be read.
        UserError: it is not in the builder's format, or does not match the shard.
    """
    where = sample_table_range(url, shard)
    return parse_sample_table(storage.read_bytes(where.url, where.end, read), shard)


def sample_table_range(url: str, shard: Shard) -> storage.Range:
    """Return the file of a sample table, as a range of the largest size that it may have."""
    limit = JSON_BYTES_PER_SAMPLE * (shard.samples + 100)
    return storage.Range(storage.join(url, sample_table_name(shard.name)), 0, limit)


def parse_sample_table(data: bytes, shard: Shard) -> SampleTable:
    """Parse the sample table of a shard.

    Raises:
        UserError: it is not in the builder's format, or does not match the shard.
    """
    name = sample_table_name(shard.name)
    fields = storage.decode_json(data, _SampleTableFields, name)
    if reason := _table_fault(fields, shard):
        raise UserError(f"{name} is invalid: {reason}")
    return SampleTable(np.array(fields.offsets, np.int64), np.array(fields.crc32, np.uint32))


def _table_fault(table: _SampleTableFields, shard: Shard) -> str | None:
    """Return the reason why a sample table cannot be that of a shard, or None."""
    sizes = [end - begin for begin, end in pairwise(table.offsets)]
    if not len(sizes) == len(table.crc32) == shard.samples:
        return f"{len(sizes)} samples and {len(table.crc32)} checksums of {shard.samples} samples"
    if table.offsets[0] != 0 or min(sizes) <= 0:
        return "the offsets do not ascend from 0"
    if table.offsets[-1] > shard.bytes:
        return f"it ends at byte {table.offsets[-1]} of {shard.bytes}"
    if max(sizes) > MAX_SAMPLE_BYTES:
        return f"a sample of {max(sizes)} bytes, more than {MAX_SAMPLE_BYTES}"
    return None
