"""Pack one shard: read and check its images, write the tar and its sample table."""

import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import webdataset as wds

from stargan_dist import storage
from stargan_dist.data import transforms
from stargan_dist.data.index import Shard, ShardFields, sample_table_name, slug
from stargan_dist.errors import PermanentError, UserError, explained, may_pass, printable
from stargan_dist.shards.listing import IMAGE_SUFFIXES, Item

PROGRESS_FOLDER = "progress"  # records of the shards of an unpublished build
MAX_RECORD_BYTES = 2**16


@dataclass(frozen=True)
class Encoding:
    """Re-encoding of images before they are packed.

    The image is cropped to a central square of at most `crop` pixels a side (0: not cropped). Then
    its shorter side is reduced to `size` pixels (0: not resized). `format` is jpeg (4:4:4), png or
    webp; `quality` is that of jpeg and webp.
    """

    size: int = 0
    crop: int = 0
    format: str = "jpeg"
    quality: int = 92


@dataclass(frozen=True)
class PackTask:
    """A shard to pack: everything that its bytes depend on, and its destination."""

    dest: str
    name: str
    root: str
    split: str
    domain: str
    label: int
    first: int  # number of the first item within the split and domain
    items: list[Item]
    encoding: Encoding | None
    skip_bad: bool

    @cached_property
    def plan(self) -> str:
        """Hash of all that the bytes depend on. A shard with the same plan is not packed again."""
        encoding = asdict(self.encoding) if self.encoding else None
        location = [self.name, self.root.rstrip("/"), self.split, self.domain]
        text = json.dumps([*location, self.label, self.first, encoding, self.items], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class PackResult:
    """The packed shard, or None if no image could be packed, and the faults of the images."""

    shard: Shard | None
    faults: list[str]


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image to pack, the suffix of its format, and its size in pixels."""

    data: bytes
    suffix: str
    width: int
    height: int


def pack(task: PackTask) -> PackResult:
    """Pack and publish a shard. Skip a shard that this build packed before an interruption.

    Raises:
        UserError: the source cannot be read, or the shard cannot be written.
    """
    try:
        record = read_record(task.dest, task.name)
        if record and record.plan == task.plan:
            return PackResult(record.shard, [])
        storage.remove_file(record_url(task.dest, task.name))  # the shard will be replaced
        return _pack(task)
    except OSError as error:
        message = (
            f"cannot pack {storage.join(task.dest, task.name)}: {error}; "
            "run the same command again to continue the build"
        )
        raise explained(message, error) from error


def _pack(task: PackTask) -> PackResult:
    """Publish the tar, then its sample table, then the record that the shard is complete.

    Faults that must not be skipped prevent publication. A shard with faults has no record, so that
    a resumed build checks again whether they have been repaired.
    """
    faults: list[str] = []
    with storage.published_file(storage.join(task.dest, task.name)) as tar:
        offsets, sizes = _write_tar(task, tar, faults)
        crc32, sha256 = _checksums(tar, offsets)
        tar_bytes = tar.stat().st_size
        if not sizes or (faults and not task.skip_bad):
            tar.unlink()
            return PackResult(None, faults)
    widths, heights = zip(*sizes, strict=True)
    shard = Shard(
        task.name, len(sizes), tar_bytes, sha256,
        [min(widths), max(widths)], [min(heights), max(heights)],
    )  # fmt: skip
    samples_url = storage.join(task.dest, sample_table_name(task.name))
    _write_json(samples_url, {"offsets": offsets, "crc32": crc32})
    if not faults:
        _write_json(record_url(task.dest, task.name), asdict(Record(task.plan, shard)))
    return PackResult(shard, faults)


def _write_json(url: str, content: dict[str, Any]) -> None:
    storage.write_bytes(url, json.dumps(content).encode())


# Records of packed shards.


@dataclass(frozen=True)
class Record:
    """A packed shard of an unpublished build, and the plan by which it was packed."""

    plan: str
    shard: Shard


class _RecordFields(msgspec.Struct, forbid_unknown_fields=True):
    plan: str
    shard: ShardFields


def read_record(dest: str, shard_name: str) -> Record | None:
    """Read the record of a shard of an unpublished build; None if there is no valid one."""
    url = record_url(dest, shard_name)
    try:
        fields = storage.decode_json(storage.read_bytes(url, MAX_RECORD_BYTES), _RecordFields, url)
        record = Record(fields.plan, fields.shard.shard(url))
    except (FileNotFoundError, UserError):
        return None
    return record if record.shard.name == shard_name else None


def record_url(dest: str, shard_name: str) -> str:
    return storage.join(dest, PROGRESS_FOLDER, sample_table_name(shard_name))


# The tar.


def _write_tar(
    task: PackTask, tar: Path, faults: list[str]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Pack all usable images and append the faults of the others.

    Returns:
        The offsets of the samples and of the end of the last one, in bytes; the width and height of
        each image.
    """
    offsets, sizes = [0], []
    # Members have time 0, so that the same images give the same bytes.
    with tar.open("wb") as file, wds.TarWriter(file, mtime=0, encoder=False) as writer:
        for number, item, image in _read_images(task, faults):
            key = f"{task.split}/{slug(task.label, task.domain)}/{number:08d}"
            metadata = _sample_json(task, item)
            writer.write({"__key__": key, image.suffix: image.data, "json": metadata})
            offsets.append(writer.tarstream.offset)
            sizes.append((image.width, image.height))
    return offsets, sizes


def _read_images(task: PackTask, faults: list[str]) -> Iterator[tuple[int, Item, EncodedImage]]:
    """Yield the usable images with their numbers, and append the faults of the others.

    Raises:
        OSError: the source cannot be read at present, which is not a fault of the image.
    """
    urls = [_item_url(task.root, item.path) for item in task.items]
    with storage.files_ahead(urls) as ahead:
        for number, (item, url) in enumerate(zip(task.items, urls, strict=True), start=task.first):
            try:
                data = storage.read_bytes(url, read=ahead.read)
                yield number, item, prepare_image(data, item.path, task.encoding)
            except (UserError, FileNotFoundError, IsADirectoryError) as error:
                faults.append(printable(f"{item.path}: {error}"))
            except OSError as error:
                if not (isinstance(error, PermissionError) and storage.is_local(task.root)):
                    kind = OSError if may_pass(error) else PermanentError
                    raise kind(f"{printable(item.path)} cannot be read: {error}") from error
                faults.append(printable(f"{item.path}: {error}"))


def _item_url(root: str, path: str) -> str:
    is_absolute = path.startswith("/") or "://" in path
    return path if is_absolute else storage.join(root, path)


def prepare_image(data: bytes, path: str, encoding: Encoding | None) -> EncodedImage:
    """Decode an image to check it, and re-encode it if `encoding` is given.

    Raises:
        UserError: the image cannot be used.
    """
    image = transforms.decode_still(data)
    if encoding is None:
        suffix = PurePosixPath(path).suffix.lower()
        suffix = suffix.lstrip(".") if suffix in IMAGE_SUFFIXES else "image"
        return EncodedImage(data, suffix, *image.size)
    data = transforms.reencode(
        image, crop=encoding.crop, size=encoding.size,
        image_format=encoding.format, quality=encoding.quality,
    )  # fmt: skip
    return EncodedImage(data, encoding.format, *transforms.decode(data).size)


def _sample_json(task: PackTask, item: Item) -> bytes:
    metadata: dict[str, Any] = {"domain": task.domain, "label": task.label, "path": item.path}
    if item.attributes:
        metadata["attributes"] = item.attributes
    return json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode()


def _checksums(tar: Path, offsets: list[int]) -> tuple[list[int], str]:
    """Return the CRC-32 of each sample and the SHA-256 of the whole tar (hex)."""
    crc32, sha256 = [], hashlib.sha256()
    with tar.open("rb") as file:
        for begin, end in pairwise(offsets):
            data = file.read(end - begin)
            crc32.append(zlib.crc32(data))
            sha256.update(data)
        sha256.update(file.read())
    return crc32, sha256.hexdigest()
