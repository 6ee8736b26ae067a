"""What is to be packed: a folder of images per domain, or a manifest of paths and domains."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from stargan_dist import storage
from stargan_dist.data.order import seeded_rng
from stargan_dist.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
SPLITS = ("train", "val", "test")
MANIFEST_SUFFIXES = (".csv", ".jsonl")
UNSPLIT = ""


class Item(NamedTuple):
    """An image: its path as the source names it, and what else the source says of it.

    `stamp` changes with the file, as far as a listing tells.
    """

    path: str
    attributes: dict[str, Any] | None = None
    stamp: str = ""


@dataclass(frozen=True)
class Listing:
    """What a source holds: split -> domain -> items, in order; and its faults.

    `root` is what relative paths are relative to. The split UNSPLIT is yet to be divided.
    """

    root: str
    splits: dict[str, dict[str, list[Item]]]
    faults: list[str] = field(default_factory=list)

    @property
    def domains(self) -> list[str]:
        return sorted({domain for split in self.splits.values() for domain in split})


def list_source(url: str, val_list: str = "") -> Listing:
    """List a folder per domain, folders `train` and `val` of such folders, or a manifest.

    Args:
        url: a folder, or a manifest that ends with .csv or .jsonl.
        val_list: a file of paths, one a line, that make up the validation split.

    Raises:
        UserError: there is nothing to list, or fewer than two domains and no attributes.
    """
    listing = _list_manifest(url) if url.endswith(MANIFEST_SUFFIXES) else _list_folder(url)
    if len(listing.domains) < 2 and not _has_attributes(listing):
        raise UserError(
            f"{url} must hold at least two domains, or attributes: {listing.domains} found"
        )
    return _split_by_list(listing, val_list) if val_list else listing


def _has_attributes(listing: Listing) -> bool:
    """Whether some image is listed with attributes, which can be labels instead of domains."""
    domains = (items for split in listing.splits.values() for items in split.values())
    return any(item.attributes for items in domains for item in items)


# A folder for each domain.


def _entries(url: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted, without hidden ones."""
    rows = storage.list_entries(url).items()
    shown = sorted((name, row["type"]) for name, row in rows if not name.startswith("."))
    return (
        [name for name, kind in shown if kind == "directory"],
        [name for name, kind in shown if kind != "directory"],
    )


def _fault_of(path: str, row: dict[str, Any]) -> str | None:
    """Why a file in a domain's folder cannot be packed, as far as its name tells."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"{path!a}: the name is not UTF-8"
    if row.get("islink") and PurePosixPath(path).suffix.lower() not in IMAGE_SUFFIXES:
        return f"{path}: links to folders are not followed, name the folder itself"
    if PurePosixPath(path).suffix.lower() not in IMAGE_SUFFIXES:
        return f"{path}: not an image file"
    if row.get("size") == 0:
        return f"{path}: the file is empty"
    return None


def _stamp(row: dict[str, Any]) -> str:
    changed = row.get("ETag") or row.get("mtime") or row.get("LastModified") or ""
    return f"{row.get('size')} {changed}"


def _list_domain(url: str, relative: str) -> tuple[list[Item], list[str]]:
    """The image files below a domain's folder, sorted, and its faults."""
    found = storage.find_files(storage.join(url, relative))
    rows = {f"{relative}/{below}": row for below, row in sorted(found.items())}
    shown = {p: row for p, row in rows.items() if not PurePosixPath(p).name.startswith(".")}
    told = {path: _fault_of(path, row) for path, row in shown.items()}
    items = [Item(p, None, _stamp(shown[p])) for p, fault in told.items() if fault is None]
    faults = [fault for fault in told.values() if fault is not None]
    if not items:
        faults.append(f"{relative}: the domain has no images")
    return items, faults


def _list_folder(url: str) -> Listing:
    if not storage.is_folder(url):
        raise UserError(f"{url} is not a folder, nor a manifest (.csv or .jsonl)")
    folders, strays = _entries(url)
    has_splits = "train" in folders
    if has_splits and not set(folders) <= set(SPLITS):
        others = ", ".join(sorted(set(folders) - set(SPLITS)))
        raise UserError(
            f"{url} has a folder train, so {others} beside it should not be there: name the "
            f"folder of the domains, or keep only {', '.join(SPLITS)}"
        )
    faults = [f"{name}: a stray file or link beside the folders" for name in strays]
    splits: dict[str, dict[str, list[Item]]] = {}
    for split in folders if has_splits else [UNSPLIT]:
        domains = folders
        if split:
            domains, strays = _entries(storage.join(url, split))
            faults += [f"{split}/{name}: a stray file or link" for name in strays]
        splits[split] = {}
        for domain in domains:
            items, more = _list_domain(url, f"{split}/{domain}" if split else domain)
            faults += more
            if items:
                splits[split][domain] = items
    return Listing(url, splits, faults)


# A manifest.


def _value(text: str) -> Any:
    """A number where a CSV cell is written as one; its text otherwise."""
    try:
        value = json.loads(text, parse_constant=str)  # NaN is a name, here
    except json.JSONDecodeError:
        return text
    return value if type(value) in (int, float) else text


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text), restval="")
    for row in reader:
        if row.pop(None, None):
            raise UserError(f"line {reader.line_num}: more cells than the header names")
        names = ("path", "domain", "split")
        yield reader.line_num, {k: v if k in names else _value(v) for k, v in row.items()}


def _jsonl_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(f"line {number}: {error}") from error


def _list_manifest(url: str) -> Listing:
    """Rows of `path`, `domain`, perhaps `split`, and further attributes.

    Paths are relative to the manifest's folder, or absolute, or URLs.

    Raises:
        UserError: a row cannot be used; the message names its line.
    """
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")
        splits = _group((_csv_rows if url.endswith(".csv") else _jsonl_rows)(text))
    except UserError as error:
        raise UserError(f"{url}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the manifest {url}: {error}") from error
    if UNSPLIT in splits and len(splits) > 1:
        raise UserError(f"{url}: some rows name a split and some do not: name it in all or none")
    return Listing(storage.parent(url), splits)


def _group(rows: Iterator[tuple[int, dict[str, Any]]]) -> dict[str, dict[str, list[Item]]]:
    splits: dict[str, dict[str, list[Item]]] = {}
    seen: set[str] = set()
    for number, row in rows:
        try:
            path, domain, split = _place(row, seen)
        except UserError as error:
            raise UserError(f"line {number}: {error}") from error
        splits.setdefault(split, {}).setdefault(domain, []).append(Item(path, row or None))
    return splits


def _place(row: dict[str, Any], seen: set[str]) -> tuple[str, str, str]:
    """Take path, domain and split out of a row."""
    path, domain, split = (str(row.pop(k, "") or "") for k in ("path", "domain", "split"))
    if not path or not domain:
        raise UserError("a row needs the fields path and domain (and perhaps split)")
    if split not in (UNSPLIT, *SPLITS):
        raise UserError(f"split {split} is none of {', '.join(SPLITS)}")
    if path in seen:
        raise UserError(f"{path} is listed twice")
    seen.add(path)
    return path, domain, split


# Splits.


def _split_by_list(listing: Listing, val_list: str) -> Listing:
    """Divide an unsplit listing: the paths in a file are for validation, the others train."""
    if UNSPLIT not in listing.splits:
        raise UserError(f"{listing.root} has splits of its own: leave out the list {val_list}")
    try:
        named = set(storage.read_bytes(val_list).decode().split("\n")) - {""}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the list {val_list}: {error}") from error
    named = {path.rstrip("\r") for path in named}
    domains = listing.splits[UNSPLIT]
    unknown = named - {item.path for items in domains.values() for item in items}
    if unknown:
        raise UserError(
            f"{val_list} names {len(unknown)} images that {listing.root} does not have, "
            f"such as {min(unknown)}"
        )
    return _divided(listing, lambda _domain, items: [item.path in named for item in items])


def split_off(listing: Listing, val_fraction: float, seed: int) -> Listing:
    """Divide an unsplit listing into train and val: a seeded draw in each domain."""
    if UNSPLIT not in listing.splits:
        return listing

    def drawn(domain: str, items: list[Item]) -> list[bool]:
        order = seeded_rng(seed, "split", domain).permutation(len(items))
        val = set(order[: round(val_fraction * len(items))].tolist())
        return [i in val for i in range(len(items))]

    return _divided(listing, drawn)


def _divided(listing: Listing, is_val: Callable[[str, list[Item]], list[bool]]) -> Listing:
    """Divide an unsplit listing into train and val; either may lack a domain."""
    splits: dict[str, dict[str, list[Item]]] = {"train": {}, "val": {}}
    for domain, items in listing.splits[UNSPLIT].items():
        marks = is_val(domain, items)
        for split, val in (("train", False), ("val", True)):
            mine = [item for item, mark in zip(items, marks, strict=True) if mark == val]
            if mine:
                splits[split][domain] = mine
    return Listing(listing.root, {s: d for s, d in splits.items() if d}, listing.faults)
