"""A bounded cache of whole shards on a local disk, shared by all processes of a node."""

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from stargan_dist import storage
from stargan_dist.data.index import Shard
from stargan_dist.errors import OutsideFault, PermanentError, UserError
from stargan_dist.storage import with_retries

DOWNLOAD_LOCKS = 64
ABANDONED_SECONDS = 3600.0
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class _DamagedDownload(OSError):
    """A download that differs from the index: another try may succeed."""


class CacheFault(OutsideFault):
    """The cache's disk is full. No shard is at fault."""


class ShardCache:
    """Cache of shards, keyed by full URL and hash; evicts the least recently used. Picklable.

    Args:
        folder: local folder, created if it is missing. Several caches may share it.
        limit_bytes: bound of all files in the folder. Downloads in progress count; several at once
            may exceed it for a time.
    """

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = Path(folder), limit_bytes

    def read_range(self, url: str, shard: Shard, begin: int, end: int) -> bytes:
        """Read the bytes [begin, end) of the shard at `url`; download the shard if it is missing.

        Raises:
            OSError: the download fails; PermanentError if it arrives damaged at every try.
            UserError: the shard is larger than the cache.
            CacheFault: the cache's disk is full.
        """
        with self._open(url, shard) as file:
            os.utime(file.fileno())  # marks it as the most recently used
            file.seek(begin)
            return file.read(end - begin)

    def discard(self, url: str, shard: Shard) -> None:
        """Remove a shard whose file is damaged."""
        self._path(url, shard).unlink(missing_ok=True)

    def _path(self, url: str, shard: Shard) -> Path:
        return self.folder / hashlib.sha256(f"{url} {shard.sha256}".encode()).hexdigest()

    def _open(self, url: str, shard: Shard) -> BinaryIO:
        path = self._path(url, shard)
        with suppress(FileNotFoundError):
            return path.open("rb")
        with self._full_disk_explained():
            return self._open_or_download(url, shard, path)

    def _open_or_download(self, url: str, shard: Shard, path: Path) -> BinaryIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".lock-{int(path.name[:8], 16) % DOWNLOAD_LOCKS}"):
            with suppress(FileNotFoundError):  # another process has downloaded it meanwhile
                return path.open("rb")
            return self._download(url, shard, path)

    @contextmanager
    def _full_disk_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            raise CacheFault(
                f"the disk of the cache {self.folder} is full ({error.strerror}): free space on "
                "it, or lower data.cache_gib below the space that the cache may take"
            ) from error

    def _download(self, url: str, shard: Shard, path: Path) -> BinaryIO:
        """Return the open file, which stays readable even if it is evicted right away."""
        if shard.bytes > self.limit_bytes:
            raise UserError(
                f"the cache {self.folder} is limited to {self.limit_bytes} bytes, but shard "
                f"{shard.name} has {shard.bytes}: raise data.cache_gib"
            )
        partial = path.with_suffix(".partial")
        try:
            with_retries(lambda: self._download_once(url, shard, partial))
            file = partial.open("rb")
            partial.replace(path)
        except _DamagedDownload as error:
            raise PermanentError(str(error)) from error
        finally:
            partial.unlink(missing_ok=True)
        with self._eviction_lock():
            self._evict(0)  # several downloads at once may have exceeded the limit
        return file

    def _download_once(self, url: str, shard: Shard, partial: Path) -> None:
        with self._eviction_lock():
            partial.unlink(missing_ok=True)
            self._evict(shard.bytes)
            with partial.open("wb") as file:
                file.truncate(shard.bytes)  # reserves the space: other processes count it
        digest = hashlib.sha256()
        with partial.open("r+b") as file:
            for block in storage.read_blocks(url):
                if file.tell() + len(block) > shard.bytes:  # no more than was reserved
                    raise OSError(f"it is longer than the {shard.bytes} bytes of the index")
                digest.update(block)
                file.write(block)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())  # a file under its final name is complete, even after a crash
        if digest.hexdigest() != shard.sha256:
            raise _DamagedDownload(
                "its hash is not the index's: the shard is damaged, truncated or replaced"
            )

    def _eviction_lock(self) -> FileLock:
        """Lock for counting and removing files."""
        return FileLock(self.folder / ".lock")

    def _evict(self, size: int) -> None:
        """Remove the least recently used files until `size` more bytes fit."""
        files = list(self._files())
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
            if total + size <= self.limit_bytes:
                break
            in_progress = path.suffix and time.time() - stat.st_mtime < ABANDONED_SECONDS
            if not in_progress:
                path.unlink(missing_ok=True)
                total -= stat.st_size

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        for entry in os.scandir(self.folder):
            # Another process may just have finished its download and renamed the file.
            with suppress(FileNotFoundError):
                if not entry.name.startswith(".lock"):
                    yield entry.stat(), Path(entry)
