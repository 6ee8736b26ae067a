"""Writes to URLs: files and folders that are complete or absent, removal, locks."""

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from stargan_dist.errors import UserError
from stargan_dist.storage.reading import PARTIAL, exists, filesystem, is_local, join
from stargan_dist.storage.retry import with_retries


def write_bytes(url: str, data: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, never a part."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        with published_file(url) as staging:
            staging.write_bytes(data)
    else:
        with_retries(lambda: fs.pipe_file(path, data))  # an object store's put is atomic


@contextmanager
def published_file(url: str) -> Iterator[Path]:
    """Fill a file that appears under its name complete or not at all.

    Yields a path to write to. What stood at the URL is replaced; nothing is published after an
    exception, or where the path was not written to or was removed again.
    """
    fs, path = filesystem(url)
    local = isinstance(fs, LocalFileSystem)
    folder = Path(path).parent if local else Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f"{PARTIAL}{Path(path).name}-{uuid.uuid4().hex[:8]}"
    try:
        yield staging
        if not staging.exists():
            return
        if local:
            _sync(staging)
            staging.replace(path)
        else:
            with_retries(lambda: fs.put_file(str(staging), path))
    finally:
        staging.unlink(missing_ok=True)


def remove_file(url: str) -> None:
    """Remove a file, if it is there."""
    fs, path = filesystem(url)
    with suppress(FileNotFoundError):
        fs.rm_file(path)


def remove_files(urls: list[str]) -> None:
    """Remove files of one file system: in few requests, where it can."""
    if urls:
        fs = filesystem(urls[0])[0]
        fs.rm([filesystem(url)[1] for url in urls])


def remove_folder(url: str, first: str = "") -> None:
    """Remove a folder, if it is there: the file named `first` ahead of the rest."""
    fs, path = filesystem(url)
    if first:
        remove_file(join(url, first))
    with suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def check_writable(url: str) -> None:
    """Raises UserError where a folder cannot be made or written to."""
    probe = join(url, f"{PARTIAL}probe-{uuid.uuid4().hex[:8]}")
    try:
        write_bytes(probe, b"")
        remove_file(probe)
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
            _sync(file)
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=target.parent))
        target.rename(old / target.name)
        staging.rename(target)
        shutil.rmtree(old)
    else:
        staging.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _upload(staging: Path, url: str, last: str) -> None:
    fs, path = filesystem(url)
    if exists(url):
        remove_folder(url, first=last)
    files = sorted(file for file in staging.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file == staging / last):
        target = join(path, file.relative_to(staging).as_posix())
        with_retries(partial(fs.put_file, str(file), target))


def remove_leftovers(url: str) -> None:
    """Remove what killed writers left in a local folder. For its only writer to call."""
    if is_local(url):
        for leftover in Path(filesystem(url)[1]).glob(f"{PARTIAL}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
