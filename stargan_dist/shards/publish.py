"""Publish a set: write its index, last of all; and before that, join the parts of a build."""

import json
import re
from collections.abc import Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from stargan_dist import storage
from stargan_dist.data.index import INDEX, Index, Shard, from_json, read_index, to_json
from stargan_dist.errors import UserError
from stargan_dist.shards.pack import PROGRESS, read_record

PARTS = "parts"
READERS = 16  # threads that wait for small files


@dataclass(frozen=True)
class BuildPart:
    """The n-th of so many equal parts of a build, counted from 1."""

    number: int = 1
    of: int = 1


WHOLE = BuildPart()


def check_trainable(source: str, domains: list[str], train: Mapping[str, Sized]) -> None:
    """Raises UserError if a domain has nothing to train on."""
    for domain in domains:
        if not train.get(domain):
            raise UserError(f"{source}: no usable training image in domain {domain}")


def publish(dest: str, index: Index) -> None:
    """Write the index, and forget how it came about."""
    check_trainable(index.source, index.domains, index.splits.get("train", {}))
    storage.write_bytes(storage.join(dest, INDEX), to_json(index))
    for folder in (PARTS, PROGRESS):
        storage.remove_folder(storage.join(dest, folder))


def _part_name(part: BuildPart) -> str:
    return f"{part.number}-of-{part.of}.json"


def _part_names(dest: str) -> list[str]:
    names = storage.list_names(storage.join(dest, PARTS))
    return [name for name in names if re.fullmatch(r"\d+-of-\d+\.json", name)]


def _read_part(dest: str, name: str) -> dict[str, Any]:
    """A part's `plan`, a hash that all parts of a build share, and its `index`."""
    return json.loads(storage.read_bytes(storage.join(dest, PARTS, name)))


def write_part(dest: str, part: BuildPart, index: Index, plan: str) -> None:
    row: dict[str, Any] = {"plan": plan, "index": json.loads(to_json(index))}
    text = json.dumps(row, indent=1, ensure_ascii=False)
    storage.write_bytes(storage.join(dest, PARTS, _part_name(part)), text.encode())


def check_parts(dest: str, plan: str) -> None:
    """Raises UserError if parts of another build wait there, whose shards would be replaced."""
    for name in _part_names(dest):
        if _read_part(dest, name)["plan"] != plan:
            raise UserError(
                f"{dest} holds part {name} of another build, of other images or with other "
                f"options: merge its parts first, or remove the folder {PARTS} there"
            )


def merge(dest: str, overwrite: bool = False) -> Index:
    """Join the parts of a build into one index, as one build would have written it.

    Raises:
        UserError: parts are missing, or are not of one build.
    """
    if storage.exists(storage.join(dest, INDEX)) and not overwrite:
        raise UserError(f"{dest} has an index already: replace it by --overwrite")
    names = _part_names(dest)
    if not names:
        raise UserError(f"{dest} holds no parts: build them with --part 1/N … N/N")
    of = int(names[0].removesuffix(".json").rpartition("-of-")[2])
    wanted = [_part_name(BuildPart(number, of)) for number in range(1, of + 1)]
    if set(names) - set(wanted):
        raise UserError(
            f"{dest}/{PARTS} holds parts of several builds: remove those of the old one"
        )
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UserError(f"{dest}: {len(missing)} of {of} parts are missing, first {missing[0]}")
    index = _join(dest, wanted)
    _check_shards(dest, index)
    publish(dest, index)
    return index


def merge_if_last(dest: str, part: BuildPart) -> Index | None:
    """Join the parts of a build if none is missing, for whoever has built one; else None.

    Two parts that end at once may both find all parts there. They would write the same bytes, and
    who comes too late finds the index of the other.

    Raises:
        UserError: the parts are not of one build.
    """
    try:
        return merge(dest) if len(_part_names(dest)) >= part.of else None
    except (UserError, OSError):
        if not storage.exists(storage.join(dest, INDEX)):
            raise
        return read_index(dest)


def _check_shards(dest: str, index: Index) -> None:
    """Raises UserError if a shard is not the one that its part has packed.

    Those with left out images have no record; they are packed anew by every build.
    """
    with ThreadPoolExecutor(READERS) as pool:
        records = pool.map(lambda shard: read_record(dest, shard.name), index.shards())
        for shard, record in zip(index.shards(), records, strict=True):
            if record and record["shard"] != asdict(shard):
                raise UserError(
                    f"{dest}: {shard.name} was packed again since its part was built: "
                    "build that part again"
                )


def _join(dest: str, names: list[str]) -> Index:
    rows = [_read_part(dest, name) for name in names]
    if len({row["plan"] for row in rows}) > 1:
        raise UserError(
            f"the parts in {dest} were built from different images or with different options: "
            "build them again"
        )
    parts = [from_json(dest, json.dumps(row["index"]).encode()) for row in rows]
    splits = {
        split: {
            domain: sorted((s for p in parts for s in p.splits[split][domain]), key=_by_name)
            for domain in domains
        }
        for split, domains in parts[0].splits.items()
    }
    skipped = sorted(fault for part in parts for fault in part.skipped)
    first = parts[0]
    return Index(first.domains, splits, first.source, first.encoding, skipped)


def _by_name(shard: Shard) -> str:
    return shard.name
