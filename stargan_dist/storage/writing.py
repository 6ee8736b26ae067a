"""Writes to URLs: atomic files and folders, removal, locks."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from stargan_dist.errors import UserError, explained
from stargan_dist.storage.reading import (
    PARTIAL_PREFIX,
    exists,
    filesystem,
    join,
    list_tree,
    read_bytes,
)
from stargan_dist.storage.retry import with_retries

REMOVALS = 16  # at a time


def write_bytes(url: str, data: bytes) -> None:
    """Write a file atomically: a reader finds the old or the new contents, never a part."""
    fs, path = filesystem(url)
    if isinstance(fs, LocalFileSystem):
        with published_file(url) as staging:
            staging.write_bytes(data)
    else:
        with_retries(lambda: fs.pipe_file(path, data))  # an object store's put is atomic


def create_file(url: str, data: bytes) -> bool:
    """Create a file if there is none; of several processes that try, one succeeds.

    An object store may ignore the condition, so that the last of them replaces the file. Therefore
    it is read back, and `data` must differ between the processes.

    Returns:
        True if the file now holds `data`.

    Raises:
        OSError: the storage fails.
    """
    fs, path = filesystem(url)
    with suppress(FileExistsError):
        if isinstance(fs, LocalFileSystem):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with Path(path).open("xb") as file:
                file.write(data)
        else:
            with_retries(lambda: fs.pipe_file(path, data, mode="create"))
    return read_bytes(url) == data


@contextmanager
def published_file(url: str) -> Iterator[Path]:
    """Publish a file atomically: it appears at the URL complete or not at all.

    Yields a local path to write to. At the end it replaces any file at the URL. Nothing is
    published after an exception, or if there is no file at the path.
    """
    fs, path = filesystem(url)
    local = isinstance(fs, LocalFileSystem)
    folder, prefix = _staging_place(fs, fs._parent(path))
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f"{prefix}{uuid.uuid4().hex}"  # the file's own name may be as long as can be
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


# Removal names each file. `rm` of most filesystems would take `[`, `*` and `?` for patterns, which
# match the files of others.


def remove_file(url: str) -> None:
    """Remove a file if it exists."""
    fs, path = filesystem(url)
    with suppress(FileNotFoundError):
        if isinstance(fs, LocalFileSystem):
            fs.rm_file(path)
        else:
            with_retries(lambda: fs.rm_file(path))


def remove_files(urls: list[str]) -> None:
    """Remove files if they exist, many at a time."""
    with ThreadPoolExecutor(REMOVALS) as pool:
        list(pool.map(remove_file, urls))


def remove_folder(url: str, first: str = "") -> None:
    """Remove a folder if it exists, the file named `first` before the rest."""
    fs, path = filesystem(url)
    if first:
        remove_file(join(url, first))
    with suppress(FileNotFoundError):
        if not isinstance(fs, LocalFileSystem):
            _remove_remote_folder(url)
        elif Path(path).is_symlink():
            Path(path).unlink()
        else:
            shutil.rmtree(path)


def _remove_remote_folder(url: str) -> None:
    fs, path = filesystem(url)
    fs.invalidate_cache()  # another process may have written since the last listing
    tree = list_tree(url)
    remove_files([join(url, name) for name in tree if tree[name]["type"] != "directory"])
    folders = [name for name in tree if tree[name]["type"] == "directory"]
    for folder in [*(join(path, name) for name in sorted(folders, reverse=True)), path]:
        if fs.isdir(folder):  # a folder of an object store ends with its last object
            fs.rmdir(folder)


def check_writable(url: str) -> None:
    """Check that a folder can be created and written to.

    Raises:
        UserError: it cannot.
    """
    # A fixed name: what a killed process leaves is removed by the next one.
    probe = join(url, f"{PARTIAL_PREFIX}probe")
    try:
        write_bytes(probe, b"")
        remove_file(probe)
    except OSError as error:
        message = f"cannot write to {url}: {error}; choose another folder"
        raise explained(message, error) from error


_lock_files: set[IO[str]] = set()  # of the locks that this process holds


def _close_lock_files() -> None:
    """Close the descriptors of locks in a forked child. The parent keeps its locks."""
    while _lock_files:
        _lock_files.pop().close()


os.register_at_fork(after_in_child=_close_lock_files)


@contextmanager
def exclusive_lock(url: str, message: str) -> Iterator[None]:
    """Lock a local folder against other processes; the lock ends with the process at the latest.

    Forked children do not hold it: it is free once this process has ended, even if they live on.
    Folders of other filesystems, and of local ones without locks, are not locked.

    Raises:
        UserError: another process holds the lock; its text is `message`.
    """
    fs, path = filesystem(url)
    if not isinstance(fs, LocalFileSystem):
        yield
        return
    with (Path(path) / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(message) from error
        except OSError:
            pass  # a filesystem without locks
        _lock_files.add(file)
        try:
            yield
        finally:
            _lock_files.discard(file)


@contextmanager
def published_folder(
    url: str, last: str, confirm: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Publish a folder atomically: it appears at the URL complete or not at all.

    Yields a local folder to write to. At the end it replaces any folder at the URL. A local folder
    is renamed; elsewhere the files are uploaded, the one named `last` at the very end, and the
    folder is complete if and only if it contains that file. Nothing is published after an
    exception, one of `confirm` included, which is called right before anything is.
    """
    fs, path = filesystem(url)
    local = isinstance(fs, LocalFileSystem)
    folder, prefix = _staging_place(fs, fs._parent(path))
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    staging.chmod(0o777 & ~_umask())
    try:
        yield staging
        assert (staging / last).is_file()
        confirm()
        if local:
            _rename(staging, Path(path))
        else:
            _upload(staging, url, last, confirm)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _staging_place(fs: Any, path: str) -> tuple[Path, str]:
    """Return where what a folder is to hold is written first, and how the names there begin.

    They are on the disk of the folder, or in the folder for temporary files if that is elsewhere.
    """
    if isinstance(fs, LocalFileSystem):
        return Path(path), PARTIAL_PREFIX
    name = hashlib.sha256(fs.unstrip_protocol(path.rstrip("/")).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()), f"{PARTIAL_PREFIX}{name}-"


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _rename(staging: Path, target: Path) -> None:
    for file in staging.rglob("*"):
        if file.is_file():
            _sync(file)
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=target.parent))
        target.rename(old / target.name)
        staging.rename(target)
        shutil.rmtree(old)
    else:
        staging.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Flush a file's contents, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _upload(staging: Path, url: str, last: str, confirm: Callable[[], None]) -> None:
    fs, path = filesystem(url)
    if exists(url):
        remove_folder(url, first=last)
    files = sorted(file for file in staging.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file == staging / last):
        target = join(path, file.relative_to(staging).as_posix())
        confirm()
        with_retries(partial(fs.put_file, str(file), target))


def remove_leftovers(url: str) -> None:
    """Remove the local files of killed writers of a folder, which is on any filesystem.

    Only the folder's only writer may call this.
    """
    folder, prefix = _staging_place(*filesystem(url))
    for leftover in folder.glob(f"{prefix}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
