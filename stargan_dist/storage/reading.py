"""Paths, listings and reads of URLs, through fsspec.

A URL is a local path, or anything that fsspec opens (`s3://bucket/set`, `memory://set`,
`filecache::https://host/set`, …). Temporary faults are retried (retry.py).
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from stargan_dist.errors import UserError
from stargan_dist.storage import traffic
from stargan_dist.storage.retry import with_retries, with_timeout

PARTIAL_PREFIX = ".partial-"  # of incomplete files and folders, which a killed writer may leave
BLOCK_BYTES = 2**23


_inherited: list[Any] = []


def _keep_filesystems() -> None:
    """Keep the filesystems of this process alive in a process that is about to be forked.

    fsspec forgets them there. Garbage collection would close their connections: it blocks for a
    second, and takes the connections of this process out of the epoll set that both processes
    share, so that the next read here waits for its timeout (fsspec #835, s3fs #914).
    """
    classes = [fsspec.AbstractFileSystem]
    for kind in classes:
        classes += kind.__subclasses__()
    _inherited[:] = [fs for kind in classes for fs in [*kind._cache.values()]]


os.register_at_fork(before=_keep_filesystems)


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL, and the path in it.

    Raises:
        UserError: the protocol is unknown, or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot open {url}: {error}") from error


def is_local(url: str) -> bool:
    """Return True for paths of the local filesystem."""
    return isinstance(filesystem(url)[0], LocalFileSystem)


def is_far(url: str) -> bool:
    """Return True for paths of a store that several requests at a time can read."""
    if ":" not in url:  # most local paths
        return False
    try:
        return not ("::" in url or is_local(url))
    except UserError:  # reported where it is read
        return False


def is_inside(url: str, path: str) -> bool:
    """Return False if a path in a local folder leads out of it through links. True elsewhere."""
    fs, folder = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        return True
    return Path(folder, path).resolve().is_relative_to(Path(folder).resolve())


def is_below(url: str, folder: str) -> bool:
    """Return True if a URL is in a folder or its subfolders, by its name: links are not seen."""
    (fs, path), (other, top) = filesystem(url), filesystem(folder)
    return type(fs) is type(other) and path.startswith(top.rstrip("/") + "/")


def join(url: str, *parts: str) -> str:
    """Join a URL and the parts of a path in it."""
    base = url if url.endswith("://") else url.rstrip("/") + "/"
    return base + "/".join(parts)


def parent(url: str) -> str:
    """Return the folder of a file."""
    return url[: url.rfind("/") + 1] or "."


def exists(url: str) -> bool:
    """Return True if there is a file or folder at a URL."""
    fs, path = filesystem(url)
    fs.invalidate_cache(fs._parent(path))  # another process may have written since the last listing
    try:
        with_retries(lambda: with_timeout(fs, "info", path))
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False


def list_names(url: str) -> list[str]:
    """Return the sorted names in a folder, without incomplete files of killed writers.

    The list is empty if the folder does not exist.
    """
    fs, path = filesystem(url)
    fs.invalidate_cache()
    try:
        entries = with_retries(lambda: fs.ls(path, detail=False))
    except FileNotFoundError:
        return []
    names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
    return sorted(name for name in names if not name.startswith(PARTIAL_PREFIX))


def is_folder(url: str) -> bool:
    """Return True if there is a folder at a URL."""
    fs, path = filesystem(url)
    return with_retries(lambda: fs.isdir(path))


def list_entries(url: str) -> dict[str, dict[str, Any]]:
    """Return fsspec's details of a folder's entries: name -> `type`, perhaps `size` and more."""
    fs, path = filesystem(url)
    details = with_retries(lambda: fs.ls(path, detail=True))
    entries = {entry["name"].rstrip("/"): entry for entry in details}
    entries.pop(path.rstrip("/"), None)  # object stores may have an object with the folder's name
    return {name.rsplit("/", 1)[-1]: entry for name, entry in entries.items()}


def find_files(url: str) -> dict[str, dict[str, Any]]:
    """Return the details of all files below a folder, by their path in it.

    Links to folders are not followed.

    Raises:
        OSError: one of the folders cannot be listed. (fsspec's own `find` would omit it.)
    """
    tree = list_tree(url)
    return {path: entry for path, entry in tree.items() if entry["type"] != "directory"}


def list_tree(url: str) -> dict[str, dict[str, Any]]:
    """Return the details of all files and folders below a folder, as `find_files` does."""
    tree, folders = {}, [""]
    while folders:
        folder = folders.pop()
        for name, entry in list_entries(join(url, folder) if folder else url).items():
            path = f"{folder}/{name}" if folder else name
            tree[path] = entry
            if entry["type"] == "directory":
                folders.append(path)
    return tree


def read_once(url: str, begin: int, end: int) -> bytes:
    """Read the bytes [begin, end) of a file, fewer at its end, without retries."""
    fs, path = filesystem(url)
    data: bytes = with_timeout(fs, "cat_file", path, start=begin, end=end)
    if not isinstance(fs, LocalFileSystem):
        traffic.count(data)
    return data


def read_bytes(
    url: str, limit: int | None = None, read: Callable[[str, int, int], bytes] = read_once
) -> bytes:
    """Read a whole file.

    Args:
        url: the file.
        limit: largest size, in bytes, of such a file. It costs no request of its own.
        read: reads as `read_once` does.

    Raises:
        OSError: after the configured number of tries; at once if the file does not exist.
        UserError: the file is larger than `limit`, of which little more has been read.
    """
    return with_retries(lambda: b"".join(_bounded(url, read_blocks(url, read), limit)))


def _bounded(url: str, blocks: Iterator[bytes], limit: int | None) -> Iterator[bytes]:
    size = 0
    for block in blocks:
        size += len(block)
        if limit is not None and size > limit:
            raise UserError(
                f"{url} has more than {limit} bytes, too many for such a file: restore it"
            )
        yield block


def read_range(url: str, begin: int, end: int) -> bytes:
    """Read the bytes [begin, end) of a file, fewer at its end. Raises as `read_bytes` does.

    A server that does not support ranges returns the whole file.
    """
    if ":" not in url and url[:1] != "~":  # a fast path for local files, which training reads most
        with Path(url).open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)
    return with_retries(lambda: read_once(url, begin, end))


def read_blocks(url: str, read: Callable[[str, int, int], bytes] = read_once) -> Iterator[bytes]:
    """Yield the blocks of a file from beginning to end, without retries.

    Most files are a single block, read with a single request.

    Args:
        url: the file.
        read: reads as `read_once` does.
    """
    fs, path = filesystem(url)
    try:
        block = read(url, 0, BLOCK_BYTES)
    except OSError as error:
        # Object stores refuse ranges of empty objects.
        if isinstance(error, FileNotFoundError) or with_timeout(fs, "info", path)["size"] != 0:
            raise
        block = b""
    yield block
    if len(block) == BLOCK_BYTES:
        for begin in range(BLOCK_BYTES, with_timeout(fs, "info", path)["size"], BLOCK_BYTES):
            yield read(url, begin, begin + BLOCK_BYTES)
