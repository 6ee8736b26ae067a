"""The index of a dataset of shards: `index.json` in its folder, and one JSON file per shard.

`index.json` lists domains, splits and shards. The byte offsets and checksums of a shard's samples
are in a file beside the shard (`NAME.json`), which a reader fetches when it first needs it.
The index of ten million samples in ten thousand shards therefore stays at a few MB.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from stargan_dist import storage
from stargan_dist.errors import UserError, explained

INDEX = "index.json"
VERSION = 2


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
    widths: list[int]
    heights: list[int]


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
    fields = {"version": VERSION, **asdict(index)}
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
        return from_json(index_url, storage.read_bytes(index_url))
    except FileNotFoundError as error:
        raise UserError(
            f"no shards at {url} ({INDEX} is missing): "
            f"build them with `python -m stargan_dist.shards build IMAGES {url}`"
        ) from error
    except OSError as error:
        raise explained(f"cannot read {index_url}: {error}", error) from error


def from_json(origin: str, data: bytes) -> Index:
    """Parse `index.json`.

    Args:
        origin: where the data comes from, for error messages.
        data: contents of the file.

    Raises:
        UserError: the data is not a valid index, or is of another version.
    """
    try:
        fields = json.loads(data)
        version = fields.pop("version")
        if version != VERSION:
            raise UserError(
                f"{origin} has version {version}, but this program reads version {VERSION}: "
                "rebuild the shards"
            )
        fields["splits"] = {
            split: {domain: [_parse_shard(s) for s in shards] for domain, shards in domains.items()}
            for split, domains in fields["splits"].items()
        }
        return Index(**fields)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{origin} is not an index of shards: {error!r}") from error


def _parse_shard(fields: dict[str, Any]) -> Shard:
    shard = Shard(**fields)
    numbers = shard.samples, shard.bytes, *shard.widths, *shard.heights
    if not (len(shard.widths) == len(shard.heights) == 2 and {*map(type, numbers)} == {int}):
        raise ValueError(f"shard {shard.name}: {numbers}")
    return shard


def slug(label: int, domain: str) -> str:
    """Return a domain's name for keys and files.

    Dots, spaces and slashes are replaced: they would confuse WebDataset or shells.
    """
    return f"{label:04d}-{re.sub(r'[^A-Za-z0-9_-]', '_', domain)[:40]}"


def sample_table_name(shard_name: str) -> str:
    """Return the name of the file with a shard's sample table."""
    return shard_name.removesuffix(".tar") + ".json"


def read_sample_table(url: str, shard_name: str) -> SampleTable:
    """Read the sample table of a shard of the dataset at `url`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not in the builder's format.
    """
    name = sample_table_name(shard_name)
    data = storage.read_bytes(storage.join(url, name))
    try:
        fields = json.loads(data)
        offsets, crc32 = np.array(fields["offsets"], np.int64), np.array(fields["crc32"], np.uint32)
        return SampleTable(offsets, crc32)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{name}: {error!r}") from error
