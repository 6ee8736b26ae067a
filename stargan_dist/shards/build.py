"""Build shards from a folder of images per domain."""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import webdataset as wds

from stargan_dist import storage
from stargan_dist.data import transforms
from stargan_dist.data.order import generator
from stargan_dist.errors import UserError
from stargan_dist.progress import Progress
from stargan_dist.shards.index import INDEX, Index, Shard, write_index, write_offsets

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
SPLIT_FOLDERS = {"train", "val", "test"}
MAX_FAULTS_TOLD = 20


@dataclass(frozen=True)
class Listing:
    """What a source holds: split -> domain -> paths relative to the source; and its faults."""

    splits: dict[str, dict[str, list[str]]]
    faults: list[str] = field(default_factory=list)

    @property
    def domains(self) -> list[str]:
        return sorted({domain for split in self.splits.values() for domain in split})


def _entries(url: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted, without hidden ones."""
    fs, path = storage.filesystem(url)
    rows = fs.ls(path, detail=True)
    named = [(row["name"].rstrip("/").rsplit("/", 1)[-1], row["type"]) for row in rows]
    shown = sorted((name, kind) for name, kind in named if not name.startswith("."))
    return (
        [name for name, kind in shown if kind == "directory"],
        [name for name, kind in shown if kind != "directory"],
    )


def _list_domain(url: str, relative: str) -> tuple[list[str], list[str]]:
    """The image files below a domain's folder, sorted, and its faults."""
    fs, root = storage.filesystem(storage.join(url, relative))
    found = sorted(path[len(root) :].lstrip("/") for path in fs.find(root))
    files = [f for f in found if not PurePosixPath(f).name.startswith(".")]
    images = [f for f in files if PurePosixPath(f).suffix.lower() in IMAGE_SUFFIXES]
    faults = [f"{relative}/{f}: not an image file" for f in files if f not in set(images)]
    if not images:
        faults.append(f"{relative}: the domain has no images")
    return [f"{relative}/{f}" for f in images], faults


def list_source(url: str) -> Listing:
    """List a folder per domain, or folders `train` and `val` of such folders.

    Raises:
        UserError: no such folder, or fewer than two domains.
    """
    fs, path = storage.filesystem(url)
    if not fs.isdir(path):
        raise UserError(f"{url} is not a folder")
    folders, strays = _entries(url)
    has_splits = "train" in folders and set(folders) <= SPLIT_FOLDERS
    splits: dict[str, dict[str, list[str]]] = {}
    faults = [f"{name}: a stray file beside the folders" for name in strays]
    for split in folders if has_splits else [""]:
        domains = folders
        if split:
            domains, strays = _entries(storage.join(url, split))
            faults += [f"{split}/{name}: a stray file beside the folders" for name in strays]
        splits[split] = {}
        for domain in domains:
            relative = f"{split}/{domain}" if split else domain
            images, more = _list_domain(url, relative)
            faults += more
            if images:
                splits[split][domain] = images
    listing = Listing(splits, faults)
    if len(listing.domains) < 2:
        raise UserError(f"{url} must hold at least two folders of images, one per domain")
    return listing


def split_off(listing: Listing, val_fraction: float, seed: int) -> Listing:
    """Divide an unsplit listing into train and val: a seeded draw in each domain."""
    if "" not in listing.splits:
        return listing
    splits: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}}
    for domain, paths in listing.splits[""].items():
        drawn = generator(seed, "split", domain).permutation(len(paths))
        val = set(drawn[: round(val_fraction * len(paths))].tolist())
        splits["train"][domain] = [p for i, p in enumerate(paths) if i not in val]
        splits["val"][domain] = [p for i, p in enumerate(paths) if i in val]
    return Listing(splits, listing.faults)


@dataclass
class _ShardFile:
    """A tar being filled, in memory; WebDataset writes its members."""

    buffer: io.BytesIO = field(default_factory=io.BytesIO)
    offsets: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        # The time of a member is 0: the same images give the same bytes.
        self.writer = wds.TarWriter(self.buffer, mtime=0, encoder=False)

    def add(self, key: str, suffix: str, image: bytes, facts: dict[str, object]) -> None:
        text = json.dumps(facts, ensure_ascii=False, sort_keys=True).encode()
        self.writer.write({"__key__": key, suffix: image, "json": text})
        self.offsets.append(self.writer.tarstream.offset)

    def publish(self, url: str, name: str) -> Shard:
        self.writer.tarstream.close()  # end-of-archive blocks; the buffer stays open
        data = self.buffer.getvalue()
        storage.write_bytes(storage.join(url, name), data)
        write_offsets(url, name, self.offsets)
        return Shard(name, len(self.offsets) - 1, len(data), hashlib.sha256(data).hexdigest())


def _slug(label: int, domain: str) -> str:
    """A name for keys and files: dots, spaces and slashes would confuse WebDataset or shells."""
    return f"{label:04d}-{re.sub(r'[^A-Za-z0-9_-]', '_', domain)}"


@dataclass
class Builder:
    """Reads, checks and packs images. Bad ones are collected in `faults`."""

    source: str
    dest: str
    domains: list[str]
    shard_bytes: int
    progress: Progress
    faults: list[str] = field(default_factory=list)

    def read(self, path: str) -> bytes | None:
        """The bytes of an image that decodes; None (and a fault) for one that does not."""
        try:
            data = storage.read_bytes(storage.join(self.source, path))
            transforms.decode(data)
            return data
        except (UserError, OSError) as error:
            self.faults.append(f"{path}: {error}")
            return None
        finally:
            self.progress.advance(1)

    def shards(self, split: str, domain: str, paths: list[str]) -> Iterator[Shard]:
        """Pack a domain of a split; a shard is published when it reaches `shard_bytes`."""
        label = self.domains.index(domain)
        slug, number, shard = _slug(label, domain), 0, _ShardFile()
        for i, path in enumerate(paths):
            data = self.read(path)
            if data is None:
                continue
            suffix = PurePosixPath(path).suffix.lower().lstrip(".")
            facts = {"domain": domain, "label": label, "path": path}
            shard.add(f"{slug}/{i:08d}", suffix, data, facts)
            if shard.offsets[-1] >= self.shard_bytes:
                yield shard.publish(self.dest, f"{split}/{slug}-{number:06d}.tar")
                number, shard = number + 1, _ShardFile()
        if len(shard.offsets) > 1:
            yield shard.publish(self.dest, f"{split}/{slug}-{number:06d}.tar")


def _stop_at(faults: list[str], source: str) -> None:
    told = "\n".join(f"  {fault}" for fault in faults[:MAX_FAULTS_TOLD])
    more = len(faults) - MAX_FAULTS_TOLD
    told += f"\n  … and {more} more" if more > 0 else ""
    raise UserError(
        f"{len(faults)} faults in {source}; nothing was published. "
        f"Mend or remove them, or leave them out with --skip-bad:\n{told}"
    )


def build(
    source: str,
    dest: str,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    shard_bytes: int = 2**26,
    skip_bad: bool = False,
) -> Index:
    """Pack the images of a folder per domain into shards. The index, written last, publishes them.

    Args:
        source: folders of images, one per domain; or `train` and `val` folders of such.
        dest: where the shards go. Refused if it holds an index already.
        val_fraction: share of each domain's images set apart for validation, if the source has
            no split of its own.
        seed: of that draw.
        shard_bytes: a shard is closed when it has grown to this.
        skip_bad: leave out what cannot be used, and list it in the index, instead of stopping.

    Raises:
        UserError: for anything a person has to mend.
    """
    if storage.exists(storage.join(dest, INDEX)):
        raise UserError(f"{dest} holds shards already: remove them or name another destination")
    listing = split_off(list_source(source), val_fraction, seed)
    total = sum(len(paths) for split in listing.splits.values() for paths in split.values())
    progress = Progress(total, "images", what="building shards")
    builder = Builder(
        source, dest, listing.domains, shard_bytes, progress, faults=list(listing.faults)
    )
    if builder.faults and not skip_bad:
        _stop_at(builder.faults, source)
    storage.check_writable(dest)
    splits = {
        split: {d: list(builder.shards(split, d, paths)) for d, paths in domains.items()}
        for split, domains in listing.splits.items()
    }
    progress.close()
    if builder.faults and not skip_bad:
        _stop_at(builder.faults, source)
    for domain in listing.domains:
        if not splits["train"].get(domain):
            raise UserError(f"{source}: no usable training image in domain {domain}")
    index = Index(listing.domains, splits, source, skipped=builder.faults)
    write_index(dest, index)
    return index
