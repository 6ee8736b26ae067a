"""Publish a dataset by writing its index last; join the parts of a build before that."""

import itertools
import json
import re
from collections.abc import Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from stargan_dist import storage
from stargan_dist.data.index import (
    INDEX,
    MAX_INDEX_BYTES,
    SPLITS,
    Index,
    Shard,
    from_json,
    read_index,
    to_json,
)
from stargan_dist.errors import UserError, printable
from stargan_dist.shards.pack import PROGRESS_FOLDER, read_record

PARTS_FOLDER = "parts"
READ_THREADS = 16  # threads that wait for small files


@dataclass(frozen=True)
class BuildPart:
    """One of `count` equal parts of a build; `number` is in 1 … `count`."""

    number: int = 1
    count: int = 1


WHOLE_BUILD = BuildPart()


def check_destination(dest: str) -> None:
    """Check that no folder that a build writes to is a link out of the destination.

    Raises:
        UserError: one is.
    """
    progress = [storage.join(PROGRESS_FOLDER, split) for split in SPLITS]
    for folder in (*SPLITS, PARTS_FOLDER, PROGRESS_FOLDER, *progress):
        if not storage.is_inside(dest, folder):
            raise UserError(
                f"{storage.join(dest, folder)} is a link that leads out of {dest}: remove it, or "
                "name another destination"
            )


def check_trainable(source: str, domains: list[str], train: Mapping[str, Sized]) -> None:
    """Check that every domain has training images.

    Raises:
        UserError: a domain has none.
    """
    for domain in domains:
        if not train.get(domain):
            raise UserError(
                f"{source}: no usable training image in domain {printable(domain, 200)}"
            )


def publish(dest: str, index: Index) -> None:
    """Write the index and remove the records of the build.

    Raises:
        UserError: a domain has no training images.
    """
    check_trainable(index.source, index.domains, index.splits.get("train", {}))
    storage.write_bytes(storage.join(dest, INDEX), to_json(index))
    for folder in (PARTS_FOLDER, PROGRESS_FOLDER):
        storage.remove_folder(storage.join(dest, folder))


# Parts of a build.


def write_part(dest: str, part: BuildPart, index: Index, plan: str) -> None:
    """Write the index of a part, with the plan of the whole build."""
    content: dict[str, Any] = {"plan": plan, "index": json.loads(to_json(index))}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    storage.write_bytes(storage.join(dest, PARTS_FOLDER, _part_name(part)), text.encode())


class _PartFields(msgspec.Struct, forbid_unknown_fields=True):
    """The plan of a part, a hash shared by all parts of a build, and its index."""

    plan: str
    index: msgspec.Raw


def reject_other_builds(dest: str, plan: str) -> None:
    """Raise UserError if `dest` holds parts of a build with another plan.

    This build would replace the shards of those parts.
    """
    for name in _list_parts(dest):
        if _read_part(dest, name).plan != plan:
            raise UserError(
                f"{dest} holds part {name} of another build, with other images or other options: "
                f"merge its parts first, or remove the folder {PARTS_FOLDER} there"
            )


def merge(dest: str, overwrite: bool = False) -> Index:
    """Join the parts of a build and publish the index that a single build would have written.

    Raises:
        UserError: parts are missing or belong to several builds, or `dest` has an index and
            `overwrite` is False.
    """
    if storage.exists(storage.join(dest, INDEX)) and not overwrite:
        raise UserError(f"{dest} has an index already: replace it by --overwrite")
    check_destination(dest)
    index = _join_parts(dest, _complete_parts(dest))
    _check_shards(dest, index)
    publish(dest, index)
    return index


def merge_if_last(dest: str, part: BuildPart) -> Index | None:
    """Join the parts of a build after building `part`; return None if other parts are missing.

    Two parts that end at the same time may both find all parts. They would write the same bytes.
    The later one fails and reads the index that the earlier one has published.

    Raises:
        UserError: the parts do not belong to one build.
    """
    try:
        return merge(dest) if len(_list_parts(dest)) >= part.count else None
    except (UserError, OSError):
        if not storage.exists(storage.join(dest, INDEX)):
            raise
        return read_index(dest)


def _part_name(part: BuildPart) -> str:
    return f"{part.number}-of-{part.count}.json"


def _list_parts(dest: str) -> list[str]:
    names = storage.list_names(storage.join(dest, PARTS_FOLDER))
    return [name for name in names if re.fullmatch(r"[0-9]{1,9}-of-[0-9]{1,9}\.json", name)]


def _read_part(dest: str, name: str) -> _PartFields:
    url = storage.join(dest, PARTS_FOLDER, name)
    remedy = "build that part again"
    return storage.decode_json(storage.read_bytes(url, MAX_INDEX_BYTES), _PartFields, url, remedy)


def _complete_parts(dest: str) -> list[str]:
    """Return the names of all parts of the build at `dest`, in order.

    Raises:
        UserError: parts are missing, or belong to several builds.
    """
    names = _list_parts(dest)
    if not names:
        raise UserError(f"{dest} holds no parts: build them with --part 1/N … N/N")
    count = int(names[0].removesuffix(".json").rpartition("-of-")[2])
    # A name may claim any count: the list of all parts is not made before they are there.
    numbers = {int(name.partition("-of-")[0]) for name in names}
    if {_part_name(BuildPart(number, count)) for number in numbers} != {*names} or not (
        1 <= min(numbers) <= max(numbers) <= count
    ):
        raise UserError(
            f"{dest}/{PARTS_FOLDER} holds parts of several builds: remove those of the old one"
        )
    if len(numbers) < count:
        first = next(number for number in itertools.count(1) if number not in numbers)
        raise UserError(
            f"{dest}: {count - len(numbers)} of {count} parts are missing, "
            f"the first is {_part_name(BuildPart(first, count))}: build them"
        )
    return [_part_name(BuildPart(number, count)) for number in sorted(numbers)]


def _join_parts(dest: str, names: list[str]) -> Index:
    contents = [_read_part(dest, name) for name in names]
    if len({content.plan for content in contents}) > 1:
        raise UserError(
            f"the parts in {dest} were built from different images or with different options: "
            "build them again"
        )
    indexes = [
        from_json(storage.join(dest, PARTS_FOLDER, name), bytes(content.index))
        for name, content in zip(names, contents, strict=True)
    ]
    first = indexes[0]
    if any(_layout(index) != _layout(first) for index in indexes):
        raise UserError(
            f"the parts in {dest} have different domains: remove the folder {PARTS_FOLDER} there "
            "and build them again"
        )
    splits = {
        split: {domain: _join_shards(indexes, split, domain) for domain in domains}
        for split, domains in first.splits.items()
    }
    skipped = sorted(fault for index in indexes for fault in index.skipped)
    return Index(first.domains, splits, first.source, first.encoding, skipped)


def _layout(index: Index) -> tuple[list[str], dict[str, list[str]]]:
    """Return the domains, and those of each split in order."""
    return index.domains, {split: [*domains] for split, domains in index.splits.items()}


def _join_shards(indexes: list[Index], split: str, domain: str) -> list[Shard]:
    shards = (shard for index in indexes for shard in index.splits[split][domain])
    return sorted(shards, key=lambda shard: shard.name)


def _check_shards(dest: str, index: Index) -> None:
    """Check that the shards at `dest` are those that the parts packed.

    A shard with left-out images has no record: every build packs it anew.

    Raises:
        UserError: another build has replaced a shard.
    """
    with ThreadPoolExecutor(READ_THREADS) as pool:
        records = pool.map(lambda shard: read_record(dest, shard.name), index.shards())
        for shard, record in zip(index.shards(), records, strict=True):
            if record and record.shard != shard:
                raise UserError(
                    f"{dest}: {shard.name} was packed again since its part was built: "
                    "build that part again"
                )
