"""List the images to pack: from a folder per domain, or from a manifest of paths and domains."""

import csv
import io
import json
import logging
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from stargan_dist import storage
from stargan_dist.data.index import MAX_NAME, SPLITS
from stargan_dist.data.order import seeded_rng
from stargan_dist.errors import UserError, explained, is_utf8, printable

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
MANIFEST_SUFFIXES = (".csv", ".jsonl")
MANIFEST_FIELDS = ("path", "domain", "split")  # further fields are attributes
UNSPLIT = ""  # name of the split of a source without splits
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
MAX_DEPTH = 32  # of lists and objects in a row of a manifest
SHOWN = 200  # characters of a row's contents that an error shows

logger = logging.getLogger(__name__)


class Item(NamedTuple):
    """An image of a source: its path as the source names it, and its attributes.

    `stamp` holds size and modification time, or their equivalents in an object store. It changes
    with the file.
    """

    path: str
    attributes: dict[str, Any] | None = None
    stamp: str = ""


@dataclass(frozen=True)
class Listing:
    """The images of a source: split -> domain -> items, in order; and the faults found.

    Relative paths are relative to `root`. Images of the split UNSPLIT are still to be divided.
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
        val_list: a file with the paths of the validation images, one per line.

    Raises:
        UserError: the source cannot be listed, or has fewer than two domains and no attributes.
    """
    listing = _list_manifest(url) if url.endswith(MANIFEST_SUFFIXES) else _list_folder(url)
    if len(listing.domains) < 2 and not _has_attributes(listing):
        raise UserError(
            f"{url} must hold at least two domains, or attributes: {listing.domains} found"
        )
    return _split_by_list(listing, val_list) if val_list else listing


def _has_attributes(listing: Listing) -> bool:
    """Return True if any image has attributes, which can be labels in place of domains."""
    domains = (items for split in listing.splits.values() for items in split.values())
    return any(item.attributes for items in domains for item in items)


# A folder for each domain.


def _list_folder(url: str) -> Listing:
    if not storage.is_folder(url):
        raise UserError(f"{url} is not a folder, nor a manifest (.csv or .jsonl)")
    folders, strays = _list_visible(url)
    faults = [f"{printable(name)}: a stray file or link beside the folders" for name in strays]
    if "train" not in folders:
        domains, domain_faults = _list_domains(url, folders)
        return Listing(url, {UNSPLIT: domains}, faults + domain_faults)
    _check_split_folders(url, folders)
    splits: dict[str, dict[str, list[Item]]] = {}
    for split in folders:
        names, strays = _list_visible(storage.join(url, split))
        faults += [f"{split}/{printable(name)}: a stray file or link" for name in strays]
        splits[split], domain_faults = _list_domains(url, [f"{split}/{name}" for name in names])
        faults += domain_faults
    return Listing(url, splits, faults)


def _check_split_folders(url: str, folders: list[str]) -> None:
    unexpected = sorted(set(folders) - set(SPLITS))
    if unexpected:
        raise UserError(
            f"{url} has a folder train, but also {printable(', '.join(unexpected), SHOWN)}: name "
            f"the folder that holds the domains, or keep only {', '.join(SPLITS)}"
        )


def _list_visible(url: str) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, sorted, without hidden ones.

    Hidden folders are no domains (`.git`, `.ipynb_checkpoints`); a line says so.
    """
    entries = storage.list_entries(url)
    types = {name: entries[name]["type"] for name in sorted(entries) if not name.startswith(".")}
    folders = [name for name, kind in types.items() if kind == "directory"]
    _report_hidden(url, [name for name in entries.keys() - types if _is_folder(entries[name])])
    return folders, [name for name, kind in types.items() if kind != "directory"]


def _is_folder(entry: dict[str, Any]) -> bool:
    return bool(entry["type"] == "directory")


def _report_hidden(url: str, names: Iterable[str]) -> None:
    names = sorted(name for name in names if not name.startswith(storage.PARTIAL_PREFIX))
    if names:
        logger.warning(
            "%s: hidden folders are left out: %s; rename those that hold images",
            printable(url), printable(", ".join(names), SHOWN),
        )  # fmt: skip


def _list_domains(url: str, folders: list[str]) -> tuple[dict[str, list[Item]], list[str]]:
    """Return the images of each domain that has any, and the faults of all.

    Args:
        folders: the folder of each domain, relative to `url`.
    """
    domains, faults = {}, []
    for folder in folders:
        items, domain_faults = _list_domain(url, folder)
        faults += domain_faults
        if items:
            domains[folder.rpartition("/")[2]] = items
    return domains, faults


def _list_domain(url: str, folder: str) -> tuple[list[Item], list[str]]:
    """Return the image files below a domain's folder, sorted, and its faults."""
    files = storage.find_files(storage.join(url, folder))
    hidden = {path: _hidden_folder(path) for path in files}
    _report_hidden(storage.join(url, folder), {name for name in hidden.values() if name})
    entries = {
        f"{folder}/{path}": entry
        for path, entry in sorted(files.items())
        if not (hidden[path] or PurePosixPath(path).name.startswith("."))
    }
    checked = {path: _find_fault(path, entry) for path, entry in entries.items()}
    items = [Item(p, None, _stamp(entries[p])) for p, fault in checked.items() if fault is None]
    faults = [fault for fault in checked.values() if fault is not None]
    if not items:
        faults.append(f"{printable(folder)}: the domain has no images")
    return items, faults


def _hidden_folder(path: str) -> str | None:
    """Return the outermost hidden folder that a file is in, or None."""
    parts = PurePosixPath(path).parts[:-1]
    number = next((i for i, part in enumerate(parts) if part.startswith(".")), None)
    return None if number is None else "/".join(parts[: number + 1])


def _find_fault(path: str, entry: dict[str, Any]) -> str | None:
    """Return the reason why a file cannot be packed, as far as its directory entry shows it."""
    if not is_utf8(path):
        return f"{path!a}: the name is not UTF-8"
    name = printable(path)
    if PurePosixPath(path).suffix.lower() not in IMAGE_SUFFIXES:
        if entry.get("islink"):
            return f"{name}: links to folders are not followed, name the folder itself"
        return f"{name}: not an image file"
    if entry.get("size") == 0:
        return f"{name}: the file is empty"
    return None


def _stamp(entry: dict[str, Any]) -> str:
    changed = entry.get("ETag") or entry.get("mtime") or entry.get("LastModified") or ""
    return f"{entry.get('size')} {changed}"


# A manifest.

Row = tuple[int, dict[str, Any]]  # the number of its line, and its fields


def _list_manifest(url: str) -> Listing:
    """List a manifest: rows of `path`, `domain`, optionally `split`, and attributes.

    Paths are relative to the manifest's folder, or absolute, or URLs.

    Raises:
        UserError: a row cannot be used. The message names its line.
    """
    root = storage.parent(url)
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")
        rows = (_csv_rows if url.endswith(".csv") else _jsonl_rows)(text)
        splits = _group_rows(root, rows)
    except UserError as error:
        raise UserError(f"{url}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise explained(f"cannot read the manifest {url}: {error}", error) from error
    if UNSPLIT in splits and len(splits) > 1:
        raise UserError(f"{url}: only some rows name a split: name it in all rows or in none")
    return Listing(root, splits)


def _csv_rows(text: str) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(text), restval="")
    try:
        for row in reader:
            if row.pop(None, None):
                raise UserError("more cells than the header has names")
            yield reader.line_num, {name: _parse_cell(name, cell) for name, cell in row.items()}
    except (UserError, csv.Error) as error:
        raise UserError(f"line {reader.reader.line_num}: {error}") from error


def _parse_cell(name: str, cell: str) -> Any:
    """Convert the cell of an attribute to a number if it is one; return the text otherwise.

    Raises:
        UserError: an integer has too many digits.
    """
    if name in MANIFEST_FIELDS or not NUMBER.fullmatch(cell.strip(" \t\r\n")):
        return cell
    try:
        value = json.loads(cell)
    except ValueError as error:
        raise UserError(f"{printable(name, SHOWN)}: {_reason(error)}") from error
    return cell if isinstance(value, float) and math.isinf(value) else value


def _jsonl_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, _parse_line(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"line {number}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error).partition(";")[0]  # Python goes on to advise programmers


def _parse_line(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise UserError("a JSON object is needed, with the fields path and domain")
    if _depth(row) > MAX_DEPTH:
        raise UserError(f"lists and objects are nested more than {MAX_DEPTH} deep")
    if not is_utf8(json.dumps(row, ensure_ascii=False)):
        raise UserError("lone surrogates (\\ud800 to \\udfff) are not text")
    return row


def _depth(value: Any) -> int:
    """Return the number of lists and objects that are nested in a value, itself included."""
    if not isinstance(value, dict | list):
        return 0
    children = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, children), default=0)


def _group_rows(root: str, rows: Iterator[Row]) -> dict[str, dict[str, list[Item]]]:
    """Group rows: split -> domain -> items."""
    splits: dict[str, dict[str, list[Item]]] = {}
    lines: dict[str, int] = {}  # of each file
    for number, row in rows:
        try:
            path, domain, split = _pop_fields(row)
            first = lines.setdefault(_file(root, path), number)
            if first != number:
                raise UserError(f"{printable(path, SHOWN)} is listed twice, first in line {first}")
        except UserError as error:
            raise UserError(f"line {number}: {error}") from error
        splits.setdefault(split, {}).setdefault(domain, []).append(Item(path, row or None))
    return splits


def _file(root: str, path: str) -> str:
    """Return one name for all spellings of a path: `a.png`, `./a.png`, and with the root before."""
    if "://" in path:
        return path
    # The root itself may be a URL, whose // must stay.
    protocol, separator, folder = root.rpartition("://")
    return protocol + separator + posixpath.normpath(posixpath.join(folder, path))


def _pop_fields(row: dict[str, Any]) -> tuple[str, str, str]:
    """Remove path, domain and split from a row and return them; the attributes remain."""
    path, domain, split = map(partial(_pop_text, row), MANIFEST_FIELDS)
    if not path or not domain:
        raise UserError("a row needs the fields path and domain (and optionally split)")
    if split not in (UNSPLIT, *SPLITS):
        raise UserError(f"split {printable(split, SHOWN)} is not one of {', '.join(SPLITS)}")
    return path, domain, split


def _pop_text(row: dict[str, Any], name: str) -> str:
    """Remove a field from a row and return it as text, empty if it is missing."""
    value = row.pop(name, None) or ""
    text = str(value)
    if isinstance(value, dict | list) or len(text) > MAX_NAME:
        raise UserError(f"{name} is not a text of up to {MAX_NAME} characters")
    if "\0" in text:
        raise UserError(f"{name} is {printable(text, SHOWN)}, which no file can be named")
    return text


# Splits.


def split_listing(listing: Listing, val_fraction: float, seed: int) -> Listing:
    """Divide a listing without splits into train and val, by a seeded draw in each domain."""
    if UNSPLIT not in listing.splits:
        return listing

    def draw(domain: str, items: list[Item]) -> list[bool]:
        order = seeded_rng(seed, "split", domain).permutation(len(items))
        val = set(order[: round(val_fraction * len(items))].tolist())
        return [i in val for i in range(len(items))]

    return _divide(listing, draw)


def _split_by_list(listing: Listing, val_list: str) -> Listing:
    """Divide a listing without splits: the paths in a file become val, all others train."""
    if UNSPLIT not in listing.splits:
        raise UserError(
            f"{listing.root} has its own splits: remove the option --val-list {val_list}"
        )
    val_paths = _read_paths(val_list)
    domains = listing.splits[UNSPLIT]
    unknown = val_paths - {item.path for items in domains.values() for item in items}
    if unknown:
        raise UserError(
            f"{val_list} names {len(unknown)} images that {listing.root} does not have, "
            f"such as {printable(min(unknown), SHOWN)}: remove them from the list"
        )
    return _divide(listing, lambda _domain, items: [item.path in val_paths for item in items])


def _read_paths(url: str) -> set[str]:
    try:
        lines = set(storage.read_bytes(url).decode("utf-8-sig").split("\n")) - {""}
    except (OSError, ValueError) as error:
        raise explained(f"cannot read the list {url}: {error}", error) from error
    return {line.rstrip("\r") for line in lines}


def _divide(listing: Listing, is_val: Callable[[str, list[Item]], list[bool]]) -> Listing:
    """Divide a listing without splits into train and val; either may lack a domain."""
    splits: dict[str, dict[str, list[Item]]] = {"train": {}, "val": {}}
    for domain, items in listing.splits[UNSPLIT].items():
        marks = is_val(domain, items)
        for split, val in (("train", False), ("val", True)):
            selected = [item for item, mark in zip(items, marks, strict=True) if mark == val]
            if selected:
                splits[split][domain] = selected
    return Listing(listing.root, {s: d for s, d in splits.items() if d}, listing.faults)
