"""The index of a set of shards: `index.json` in its folder, and a file beside each shard.

`index.json` lists domains, splits and shards. Where each sample begins in a shard, and its
checksum, stand in a file beside it (`NAME.json`), which a reader fetches when it first needs it:
so the index of ten million samples in ten thousand shards stays a few MB.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from stargan_dist import storage
from stargan_dist.errors import UserError

INDEX = "index.json"
VERSION = 2


@dataclass(frozen=True)
class Shard:
    """One tar of one domain.

    `name` is relative to the set; `bytes` and `sha256` (hex) are of the tar; `widths` and
    `heights` are the smallest and the largest of its images, in pixels.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    widths: list[int]
    heights: list[int]


@dataclass(frozen=True)
class Index:
    """A set of shards.

    `domains` are in label order. `splits` maps split -> domain -> shards. `source` is where the
    images came from, `encoding` how they were encoded again (None: their original bytes), and
    `skipped` what was left out, with the reasons.
    """

    domains: list[str]
    splits: dict[str, dict[str, list[Shard]]]
    source: str
    encoding: dict[str, Any] | None = None
    skipped: list[str] = field(default_factory=list)

    def counts(self, split: str) -> tuple[tuple[int, ...], ...]:
        """For each domain, the number of samples of each shard."""
        shards = self.splits.get(split, {})
        return tuple(tuple(s.samples for s in shards.get(d, [])) for d in self.domains)

    def shards(self) -> list[Shard]:
        """All shards: by split, domain and name."""
        return [s for split in self.splits.values() for rows in split.values() for s in rows]

    @cached_property
    def fingerprint(self) -> str:
        """A name for the samples and their order, wherever they lie: a hash of the shards."""
        row = asdict(self)
        text = json.dumps([row["domains"], row["splits"]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Samples(NamedTuple):
    """Of one shard: where each sample begins and the last one ends, in bytes; their checksums."""

    offsets: np.ndarray  # int64 (n + 1,)
    crc32: np.ndarray  # uint32 (n,)


def to_json(index: Index) -> bytes:
    row = {"version": VERSION, **asdict(index)}
    return (json.dumps(row, indent=1, ensure_ascii=False) + "\n").encode()


def write_index(url: str, index: Index) -> None:
    storage.write_bytes(storage.join(url, INDEX), to_json(index))


def read_index(url: str) -> Index:
    """Read the index of the shards at a URL.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    where = storage.join(url, INDEX)
    try:
        return from_json(where, storage.read_bytes(where))
    except FileNotFoundError as error:
        raise UserError(
            f"no shards at {url} ({INDEX} is missing): "
            f"build them with `python -m stargan_dist.shards build IMAGES {url}`"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {where}: {error}") from error


def from_json(where: str, data: bytes) -> Index:
    """Raises UserError if the data, which were read from `where`, are no index."""
    try:
        row = json.loads(data)
        version = row.pop("version")
        if version != VERSION:
            raise UserError(
                f"{where} has version {version}, this program reads {VERSION}: rebuild the shards"
            )
        row["splits"] = {
            split: {domain: [_shard(s) for s in shards] for domain, shards in domains.items()}
            for split, domains in row["splits"].items()
        }
        return Index(**row)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where} is not an index of shards: {error!r}") from error


def _shard(row: dict[str, Any]) -> Shard:
    shard = Shard(**row)
    numbers = shard.samples, shard.bytes, *shard.widths, *shard.heights
    if not (len(shard.widths) == len(shard.heights) == 2 and {*map(type, numbers)} == {int}):
        raise ValueError(f"shard {shard.name}: {numbers}")
    return shard


def slug(label: int, domain: str) -> str:
    """A name for keys and files: dots, spaces and slashes would confuse WebDataset or shells."""
    return f"{label:04d}-{re.sub(r'[^A-Za-z0-9_-]', '_', domain)[:40]}"


def samples_name(shard_name: str) -> str:
    return shard_name.removesuffix(".tar") + ".json"


def read_samples(url: str, shard_name: str) -> Samples:
    """Raises OSError if it cannot be read, ValueError where it is not as the builder wrote it."""
    data = storage.read_bytes(storage.join(url, samples_name(shard_name)))
    try:
        row = json.loads(data)
        return Samples(np.array(row["offsets"], np.int64), np.array(row["crc32"], np.uint32))
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{samples_name(shard_name)}: {error!r}") from error
