"""Pack one shard: read its images, check them, write the tar and the file of its samples."""

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import webdataset as wds

from stargan_dist import storage
from stargan_dist.data import transforms
from stargan_dist.data.index import Shard, sample_table_name, slug
from stargan_dist.errors import UserError
from stargan_dist.shards.listing import IMAGE_SUFFIXES, Item

PROGRESS = "progress"  # the folder of what an unpublished build has done


@dataclass(frozen=True)
class Encoding:
    """How images are encoded again before they are packed.

    A central square of at most `crop` pixels a side is cut out (0: all of it), then the shorter
    side is reduced to `size` (0: kept). `format` is jpeg (4:4:4), png or webp.
    """

    size: int = 0
    crop: int = 0
    format: str = "jpeg"
    quality: int = 92


@dataclass(frozen=True)
class Task:
    """One shard to be packed: all that its bytes depend on, and where they go."""

    dest: str
    name: str
    root: str
    split: str
    domain: str
    label: int
    first: int  # the number, within the domain's split, of the first item
    items: list[Item]
    encoding: Encoding | None
    skip_bad: bool

    @cached_property
    def plan(self) -> str:
        """A hash of what is packed and how; a shard with the same plan is not packed again."""
        encoding = asdict(self.encoding) if self.encoding else None
        place = [self.name, self.root.rstrip("/"), self.split, self.domain, self.label, self.first]
        text = json.dumps([*place, encoding, self.items], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Packed:
    """What became of a task: its shard, if any image could be packed, and the faults."""

    shard: Shard | None
    faults: list[str]


@dataclass(frozen=True)
class Entry:
    """An image ready to be packed: its bytes, their format, its size in pixels."""

    data: bytes
    suffix: str
    width: int
    height: int


def _url(root: str, path: str) -> str:
    absolute = path.startswith("/") or "://" in path
    return path if absolute else storage.join(root, path)


def prepare(data: bytes, path: str, encoding: Encoding | None) -> Entry:
    """Check an image, and encode it again if asked to.

    Raises:
        UserError: it cannot be used.
    """
    image = transforms.decode_still(data)
    if encoding is None:
        suffix = PurePosixPath(path).suffix.lower()
        return Entry(data, suffix.lstrip(".") if suffix in IMAGE_SUFFIXES else "image", *image.size)
    data = transforms.reencode(
        image, crop=encoding.crop, size=encoding.size,
        image_format=encoding.format, quality=encoding.quality,
    )  # fmt: skip
    return Entry(data, encoding.format, *transforms.decode(data).size)


def _entries(task: Task, faults: list[str]) -> Iterator[tuple[int, Item, Entry]]:
    """The images that can be packed, with their numbers. The others' faults are added.

    Raises:
        OSError: the source cannot be read at present. That is no fault of the image.
    """
    for number, item in enumerate(task.items, start=task.first):
        try:
            data = storage.read_bytes(_url(task.root, item.path))
            yield number, item, prepare(data, item.path, task.encoding)
        except (UserError, FileNotFoundError, IsADirectoryError) as error:
            faults.append(f"{item.path}: {error}")
        except OSError as error:
            if not (isinstance(error, PermissionError) and storage.is_local(task.root)):
                raise OSError(f"{item.path} cannot be read: {error}") from error
            faults.append(f"{item.path}: {error}")


def _write_tar(task: Task, tar: Path, faults: list[str]) -> tuple[list[int], list[tuple[int, int]]]:
    """Pack all images that can be. Returns where each begins, and their widths and heights."""
    offsets, sizes = [0], []
    # The time of a member is 0: the same images give the same bytes.
    with tar.open("wb") as file, wds.TarWriter(file, mtime=0, encoder=False) as writer:
        for number, item, entry in _entries(task, faults):
            own: dict[str, Any] = {"domain": task.domain, "label": task.label, "path": item.path}
            if item.attributes:
                own["attributes"] = item.attributes
            text = json.dumps(own, ensure_ascii=False, sort_keys=True)
            key = f"{task.split}/{slug(task.label, task.domain)}/{number:08d}"
            writer.write({"__key__": key, entry.suffix: entry.data, "json": text.encode()})
            offsets.append(writer.tarstream.offset)
            sizes.append((entry.width, entry.height))
    return offsets, sizes


def _checksums(tar: Path, offsets: list[int]) -> tuple[list[int], str]:
    """The CRC-32 of each sample's bytes, and the SHA-256 of all."""
    crc32, whole = [], hashlib.sha256()
    with tar.open("rb") as file:
        for begin, end in pairwise(offsets):
            data = file.read(end - begin)
            crc32.append(zlib.crc32(data))
            whole.update(data)
        whole.update(file.read())
    return crc32, whole.hexdigest()


def read_record(dest: str, shard_name: str) -> dict[str, Any] | None:
    """What a build that is not yet published noted of a shard: its `plan` and its `shard` row."""
    try:
        record = json.loads(storage.read_bytes(record_url(dest, shard_name)))
        return record if record.keys() == {"plan", "shard"} else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def record_url(dest: str, shard_name: str) -> str:
    return storage.join(dest, PROGRESS, sample_table_name(shard_name))


def pack(task: Task) -> Packed:
    """Pack one shard and publish it, unless this build has done so before it was interrupted.

    Raises:
        UserError: the source cannot be read, or the shard not be written.
    """
    try:
        record = read_record(task.dest, task.name)
        if record and record["plan"] == task.plan:
            return Packed(Shard(**record["shard"]), [])
        storage.remove_file(record_url(task.dest, task.name))  # the shard will be another one
        return _pack(task)
    except OSError as error:
        raise UserError(
            f"cannot pack {storage.join(task.dest, task.name)}: {error}; "
            "the same command goes on where it was"
        ) from error


def _pack(task: Task) -> Packed:
    """Publish the tar, then the file of its samples, then the record that it is done.

    With faults that are not to be skipped, nothing is published. A shard with faults has no
    record: a build that goes on looks again whether they were mended.
    """
    faults: list[str] = []
    with storage.published_file(storage.join(task.dest, task.name)) as tar:
        offsets, sizes = _write_tar(task, tar, faults)
        crc32, sha256 = _checksums(tar, offsets)
        tar_bytes = tar.stat().st_size
        if not sizes or (faults and not task.skip_bad):
            tar.unlink()
            return Packed(None, faults)
    widths, heights = zip(*sizes, strict=True)
    shard = Shard(
        task.name, len(sizes), tar_bytes, sha256,
        [min(widths), max(widths)], [min(heights), max(heights)],
    )  # fmt: skip
    where = storage.join(task.dest, sample_table_name(task.name))
    _write_json(where, {"offsets": offsets, "crc32": crc32})
    if not faults:
        record = {"plan": task.plan, "shard": asdict(shard)}
        _write_json(record_url(task.dest, task.name), record)
    return Packed(shard, faults)


def _write_json(url: str, row: dict[str, Any]) -> None:
    storage.write_bytes(url, json.dumps(row).encode())
