"""The index of a set of shards: `index.json` in its folder, and offsets beside each shard.

`index.json` lists domains, splits and shards. Where each sample begins in a shard stands in a
file beside it (`NAME.offsets.json`), which a reader fetches when it first opens that shard.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from stargan_dist import storage
from stargan_dist.errors import UserError

INDEX = "index.json"
VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One tar of one domain. `name` is relative to the set; sizes in bytes; sha256 in hex."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """A set of shards.

    `domains` are in label order. `splits` maps split -> domain -> shards. `source` is where the
    images came from. `fingerprint` is the sha256 of the index as stored: it names the data set.
    """

    domains: list[str]
    splits: dict[str, dict[str, list[Shard]]]
    source: str
    skipped: list[str] = field(default_factory=list)
    fingerprint: str = ""

    def counts(self, split: str) -> tuple[tuple[int, ...], ...]:
        """For each domain, the number of samples of each shard."""
        shards = self.splits.get(split, {})
        return tuple(tuple(s.samples for s in shards.get(d, [])) for d in self.domains)


def write_index(url: str, index: Index) -> None:
    row = {"version": VERSION, **asdict(index)}
    del row["fingerprint"]
    text = json.dumps(row, indent=1, ensure_ascii=False) + "\n"
    storage.write_bytes(storage.join(url, INDEX), text.encode())


def read_index(url: str) -> Index:
    """Read the index of the shards at a URL.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    where = storage.join(url, INDEX)
    try:
        data = storage.read_bytes(where)
    except FileNotFoundError as error:
        raise UserError(
            f"no shards at {url} ({INDEX} is missing): "
            f"build them with `python -m stargan_dist.shards build IMAGES {url}`"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {where}: {error}") from error
    return _parse(where, data)


def _parse(where: str, data: bytes) -> Index:
    try:
        row = json.loads(data)
        version = row.pop("version")
        if version != VERSION:
            raise UserError(
                f"{where} has version {version}, this program reads {VERSION}: rebuild the shards"
            )
        row["splits"] = {
            split: {domain: [Shard(**s) for s in shards] for domain, shards in domains.items()}
            for split, domains in row["splits"].items()
        }
        return Index(**row, fingerprint=hashlib.sha256(data).hexdigest())
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{where} is not an index of shards: {error!r}") from error


def offsets_name(shard_name: str) -> str:
    return shard_name.removesuffix(".tar") + ".offsets.json"


def write_offsets(url: str, shard_name: str, offsets: list[int]) -> None:
    """Where each sample begins, in bytes, and where the last one ends."""
    data = json.dumps({"offsets": offsets}).encode()
    storage.write_bytes(storage.join(url, offsets_name(shard_name)), data)


def read_offsets(url: str, shard_name: str) -> list[int]:
    return json.loads(storage.read_bytes(storage.join(url, offsets_name(shard_name))))["offsets"]
