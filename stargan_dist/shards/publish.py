"""Publish a dataset by writing its index last; join the parts of a build before that."""

import json
import re
from collections.abc import Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from stargan_dist import storage
from stargan_dist.data.index import INDEX, Index, Shard, from_json, read_index, to_json
from stargan_dist.errors import UserError
from stargan_dist.shards.pack import PROGRESS_FOLDER, read_record

PARTS_FOLDER = "parts"
READ_THREADS = 16  # threads that wait for small files


@dataclass(frozen=True)
class BuildPart:
    """One of `count` equal parts of a build; `number` is in 1 … `count`."""

    number: int = 1
    count: int = 1


WHOLE_BUILD = BuildPart()


def check_trainable(source: str, domains: list[str], train: Mapping[str, Sized]) -> None:
    """Check that every domain has training images.

    Raises:
        UserError: a domain has none.
    """
    for domain in domains:
        if not train.get(domain):
            raise UserError(f"{source}: no usable training image in domain {domain}")


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


def reject_other_builds(dest: str, plan: str) -> None:
    """Raise UserError if `dest` holds parts of a build with another plan.

    This build would replace the shards of those parts.
    """
    for name in _list_parts(dest):
        if _read_part(dest, name)["plan"] != plan:
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
    return [name for name in names if re.fullmatch(r"\d+-of-\d+\.json", name)]


def _read_part(dest: str, name: str) -> dict[str, Any]:
    """Read the `plan` of a part, a hash shared by all parts of a build, and its `index`."""
    return json.loads(storage.read_bytes(storage.join(dest, PARTS_FOLDER, name)))


def _complete_parts(dest: str) -> list[str]:
    """Return the names of all parts of the build at `dest`, in order.

    Raises:
        UserError: parts are missing, or belong to several builds.
    """
    names = _list_parts(dest)
    if not names:
        raise UserError(f"{dest} holds no parts: build them with --part 1/N … N/N")
    count = int(names[0].removesuffix(".json").rpartition("-of-")[2])
    expected = [_part_name(BuildPart(number, count)) for number in range(1, count + 1)]
    if set(names) - set(expected):
        raise UserError(
            f"{dest}/{PARTS_FOLDER} holds parts of several builds: remove those of the old one"
        )
    missing = [name for name in expected if name not in names]
    if missing:
        raise UserError(
            f"{dest}: {len(missing)} of {count} parts are missing, the first is {missing[0]}: "
            "build them"
        )
    return expected


def _join_parts(dest: str, names: list[str]) -> Index:
    contents = [_read_part(dest, name) for name in names]
    if len({content["plan"] for content in contents}) > 1:
        raise UserError(
            f"the parts in {dest} were built from different images or with different options: "
            "build them again"
        )
    indexes = [from_json(dest, json.dumps(content["index"]).encode()) for content in contents]
    first = indexes[0]
    splits = {
        split: {domain: _join_shards(indexes, split, domain) for domain in domains}
        for split, domains in first.splits.items()
    }
    skipped = sorted(fault for index in indexes for fault in index.skipped)
    return Index(first.domains, splits, first.source, first.encoding, skipped)


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
            if record and record["shard"] != asdict(shard):
                raise UserError(
                    f"{dest}: {shard.name} was packed again since its part was built: "
                    "build that part again"
                )
