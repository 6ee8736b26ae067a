"""Every read and write of a URL goes through here, and through fsspec.

A URL is a local path, or anything that fsspec opens (`s3://bucket/set`, `memory://set`, …).
"""

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from stargan_dist.errors import UserError

PARTIAL = ".partial-"  # what a killed process may leave beside what it was writing


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
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return fs.exists(path)


def list_names(url: str) -> list[str]:
    """Names in a folder, sorted; none if there is no folder. Hides what dead writers left."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    if not fs.isdir(path):
        return []
    names = (entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    return sorted(name for name in names if not name.startswith(PARTIAL))


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    return fs.cat_file(path)


def write_bytes(url: str, data: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part."""
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, data)  # an object store's put is atomic
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{PARTIAL}{target.name}-{uuid.uuid4().hex[:8]}")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def remove_folder(url: str, first: str = "") -> None:
    """Remove a folder, the file named `first` ahead of the rest, if it is there."""
    fs, path = filesystem(url)
    if first and fs.exists(join(path, first)):
        fs.rm_file(join(path, first))
    fs.rm(path, recursive=True)


def check_writable(url: str) -> None:
    """Raises UserError where a folder cannot be made or written to."""
    probe = join(url, f"{PARTIAL}probe-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"")
        fs, path = filesystem(probe)
        fs.rm_file(path)
    except OSError as error:
        raise UserError(f"cannot write to {url}: {error}; choose another folder") from error


@contextmanager
def locked(url: str, complaint: str) -> Iterator[None]:
    """Hold a local folder for one process; elsewhere nothing is held. It ends with the process.

    Raises:
        UserError: another process holds it; `complaint` is its text.
    """
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        yield
        return
    with (Path(path) / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(complaint) from error
        except OSError:
            pass  # a file system without locks: nothing is held
        yield


@contextmanager
def published_folder(url: str, last: str) -> Iterator[Path]:
    """Fill a folder that appears under its name complete or not at all.

    Yields a local folder to write to. At the end it is renamed (local paths) or uploaded with the
    file named `last` at the very end (elsewhere: there the folder counts as complete if and only
    if that file is in it). What stood at the URL is replaced. An exception publishes nothing.
    """
    fs, path = filesystem(url)
    local = isinstance(fs, LocalFileSystem)
    parent = Path(path).parent if local else Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=parent))
    staging.chmod(0o777 & ~_umask())
    try:
        yield staging
        assert (staging / last).is_file()
        if local:
            _rename(staging, Path(path))
        else:
            _upload(staging, url, last)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _rename(staging: Path, target: Path) -> None:
    for file in staging.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=target.parent))
        target.rename(old / target.name)
        staging.rename(target)
        shutil.rmtree(old)
    else:
        staging.rename(target)
    folder = os.open(target.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _upload(staging: Path, url: str, last: str) -> None:
    fs, path = filesystem(url)
    if fs.exists(path):
        remove_folder(url, first=last)
    files = sorted(file for file in staging.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file == staging / last):
        fs.put_file(str(file), join(path, file.relative_to(staging).as_posix()))


def remove_leftovers(url: str) -> None:
    """Remove what killed writers left in a local folder. For its only writer to call."""
    if is_local(url):
        for leftover in Path(filesystem(url)[1]).glob(f"{PARTIAL}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
