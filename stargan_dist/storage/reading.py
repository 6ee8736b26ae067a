"""Paths, listings and reads of URLs, through fsspec.

A URL is a local path, or anything that fsspec opens (`s3://bucket/set`, `memory://set`,
`filecache::https://host/set`, …). Temporary faults are retried (retry.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from stargan_dist.errors import UserError
from stargan_dist.storage.retry import with_retries, with_timeout

PARTIAL = ".partial-"  # what a killed process may leave beside what it was writing
BLOCK_BYTES = 2**23


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path in it.

    Raises:
        UserError: the protocol is unknown or its package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot open {url}: {error}") from error


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def join(url: str, *parts: str) -> str:
    base = url if url.endswith("://") else url.rstrip("/") + "/"
    return base + "/".join(parts)


def parent(url: str) -> str:
    """The folder that a file lies in."""
    return url[: url.rfind("/") + 1] or "."


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    fs.invalidate_cache(fs._parent(path))  # another process may have written since it was listed
    try:
        with_retries(lambda: with_timeout(fs, "info", path))
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False


def list_names(url: str) -> list[str]:
    """Names in a folder, sorted; none if there is no folder. Hides what dead writers left."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    try:
        entries = with_retries(lambda: fs.ls(path, detail=False))
    except FileNotFoundError:
        return []
    names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)
    return sorted(name for name in names if not name.startswith(PARTIAL))


def is_folder(url: str) -> bool:
    fs, path = filesystem(url)
    return with_retries(lambda: fs.isdir(path))


def list_rows(url: str) -> dict[str, dict[str, Any]]:
    """What fsspec tells of each entry of a folder: name -> `type`, perhaps `size` and more."""
    fs, path = filesystem(url)
    rows = {row["name"].rstrip("/"): row for row in with_retries(lambda: fs.ls(path, detail=True))}
    rows.pop(path.rstrip("/"), None)  # object stores may have an object named as the folder is
    return {name.rsplit("/", 1)[-1]: row for name, row in rows.items()}


def find_files(url: str) -> dict[str, dict[str, Any]]:
    """All files below a folder, by their path in it. Links to folders are not followed.

    Raises:
        OSError: one of the folders cannot be listed. (fsspec's own `find` would leave it out.)
    """
    found, folders = {}, [""]
    while folders:
        folder = folders.pop()
        for name, row in list_rows(join(url, folder) if folder else url).items():
            path = f"{folder}/{name}" if folder else name
            if row["type"] == "directory":
                folders.append(path)
            else:
                found[path] = row
    return found


def read_bytes(url: str) -> bytes:
    """A file.

    Raises:
        OSError: after the configured tries; at once if there is no such file.
    """
    return with_retries(lambda: b"".join(read_blocks(url)))


def _range(url: str, begin: int, end: int) -> bytes:
    fs, path = filesystem(url)
    return with_timeout(fs, "cat_file", path, start=begin, end=end)


def read_range(url: str, begin: int, end: int) -> bytes:
    """The bytes [begin, end) of a file: fewer if it ends before. Raises as `read_bytes` does.

    A server that does not know of ranges gives the whole file.
    """
    if ":" not in url:  # the quick way for what training reads most
        with Path(url).open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)
    return with_retries(lambda: _range(url, begin, end))


def read_blocks(url: str) -> Iterator[bytes]:
    """A file from beginning to end, in blocks. Not patient: a fault ends it.

    Most files are one block, and one request.
    """
    fs, path = filesystem(url)
    try:
        block = _range(url, 0, BLOCK_BYTES)
    except OSError as error:
        # Object stores refuse ranges of empty objects.
        if isinstance(error, FileNotFoundError) or with_timeout(fs, "info", path)["size"] != 0:
            raise
        block = b""
    yield block
    if len(block) == BLOCK_BYTES:
        for begin in range(BLOCK_BYTES, with_timeout(fs, "info", path)["size"], BLOCK_BYTES):
            yield _range(url, begin, begin + BLOCK_BYTES)
