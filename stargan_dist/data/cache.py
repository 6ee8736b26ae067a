"""A bounded cache of whole shards on a local disk, shared by all processes of a node."""

import errno
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from stargan_dist import storage
from stargan_dist.data.index import Shard
from stargan_dist.errors import OutsideFault, PermanentError, UserError
from stargan_dist.storage import with_retries

DOWNLOAD_LOCKS = 64
PARTIAL = ".partial"
# Names of the cache's files. Other files of its folder are neither counted nor removed.
FILE_NAME = re.compile(rf"[0-9a-f]{{64}}({re.escape(PARTIAL)})?")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class CachedFile(NamedTuple):
    """A file of the cache: a shard, or a shard that is being downloaded."""

    name: str
    bytes: int
    used: float  # time of the last use, seconds since the epoch

    @property
    def in_progress(self) -> bool:
        """It is being downloaded, or was when its process was killed."""
        return self.name.endswith(PARTIAL)


Eviction = Callable[[list[CachedFile]], list[CachedFile]]  # files to remove, the first one first
ReadBlocks = Callable[[str], Iterator[bytes]]  # yields the blocks of the file at a URL


def least_recently_used(files: list[CachedFile]) -> list[CachedFile]:
    """Return the files in the order of their last uses."""
    return sorted(files, key=lambda file: file.used)


class _DamagedDownload(OSError):
    """A download that differs from the index: another try may succeed."""


class CacheFault(OutsideFault):
    """The cache's disk is full. No shard is at fault."""


class ShardCache:
    """Cache of shards, keyed by full URL and hash. Picklable.

    Args:
        folder: local folder, created if it is missing. Several caches may share it.
        limit_bytes: bound of the shards in the folder. Downloads in progress count; several at once
            may exceed it for a time.
    """

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = Path(folder), limit_bytes

    @staticmethod
    @lru_cache(maxsize=2**16)
    def name(url: str, shard: Shard) -> str:
        """Return the name of the file of the shard at `url`."""
        return hashlib.sha256(f"{url} {shard.sha256}".encode()).hexdigest()

    def has(self, url: str, shard: Shard) -> bool:
        """Return True if the shard at `url` is in the cache."""
        return self._path(url, shard).exists()

    def read_cached(self, url: str, shard: Shard, begin: int, end: int) -> bytes | None:
        """Read the bytes [begin, end) of the shard at `url`; None if it is not in the cache."""
        try:
            return _read(self._path(url, shard).open("rb"), begin, end)
        except FileNotFoundError:
            return None

    def read_range(self, url: str, shard: Shard, begin: int, end: int) -> bytes:
        """Read the bytes [begin, end) of the shard at `url`; download the shard if it is missing.

        Raises as `download` does.
        """
        return _read(self.download(url, shard), begin, end)

    def download(
        self,
        url: str,
        shard: Shard,
        eviction: Eviction = least_recently_used,
        read_blocks: ReadBlocks | None = None,
    ) -> BinaryIO:
        """Return the file of a shard, after downloading the shard if it is missing.

        Args:
            url: location of the shard.
            shard: the shard.
            eviction: selects files that may be removed.
            read_blocks: reads the shard; None: `storage.read_blocks`.

        Returns:
            The open file. It stays readable even if it is evicted right away.

        Raises:
            OSError: the download fails; PermanentError if it arrives damaged at every try.
            UserError: the shard is larger than the cache.
            CacheFault: the cache's disk is full.
        """
        path = self._path(url, shard)
        with suppress(FileNotFoundError):
            return path.open("rb")
        with self._full_disk_explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._download_lock(path.name):
                with suppress(FileNotFoundError):  # another process has downloaded it meanwhile
                    return path.open("rb")
                return self._download(
                    url, shard, path, eviction, read_blocks or storage.read_blocks
                )

    def discard(self, url: str, shard: Shard) -> None:
        """Remove a shard whose file is damaged."""
        self._path(url, shard).unlink(missing_ok=True)

    def remove_partial(self, name: str) -> None:
        """Remove the incomplete download of a file by this process."""
        (self.folder / name).with_suffix(PARTIAL).unlink(missing_ok=True)

    def files(self) -> list[CachedFile]:
        """Return the files of the cache."""
        files = []
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:  # a Path for each takes twice as long
                # Another process may just have finished its download and renamed the file.
                with suppress(FileNotFoundError):
                    if FILE_NAME.fullmatch(entry.name):
                        stat = entry.stat()
                        files.append(CachedFile(entry.name, stat.st_size, stat.st_mtime))
        return files

    def remove_abandoned(self) -> None:
        """Remove the downloads of processes that were killed."""
        self._remove_abandoned(self.files())

    def _remove_abandoned(self, files: list[CachedFile]) -> bool:
        """Return True if there were some."""
        removed = 0
        for file in files:
            if file.in_progress:
                with suppress(Timeout), self._download_lock(file.name, 0):
                    (self.folder / file.name).unlink(missing_ok=True)
                    removed += 1
        return removed > 0

    def _path(self, url: str, shard: Shard) -> Path:
        return self.folder / self.name(url, shard)

    def _download_lock(self, name: str, timeout_seconds: float = -1) -> FileLock:
        number = zlib.crc32(Path(name).stem.encode()) % DOWNLOAD_LOCKS
        return FileLock(self.folder / f".lock-{number}", timeout_seconds)

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

    def _download(
        self, url: str, shard: Shard, path: Path, eviction: Eviction, read_blocks: ReadBlocks
    ) -> BinaryIO:
        if shard.bytes > self.limit_bytes:
            raise UserError(
                f"the cache {self.folder} is limited to {self.limit_bytes} bytes, but shard "
                f"{shard.name} has {shard.bytes}: raise data.cache_gib"
            )
        partial = path.with_suffix(PARTIAL)
        try:
            with_retries(lambda: self._download_once(url, shard, partial, eviction, read_blocks))
            file = partial.open("rb")
            partial.replace(path)
        except _DamagedDownload as error:
            raise PermanentError(str(error)) from error
        finally:
            partial.unlink(missing_ok=True)
        with self._eviction_lock():
            self._evict(0, eviction)  # several downloads at once may have exceeded the limit
        return file

    def _download_once(
        self, url: str, shard: Shard, partial: Path, eviction: Eviction, read_blocks: ReadBlocks
    ) -> None:
        with self._eviction_lock():
            partial.unlink(missing_ok=True)
            self._evict(shard.bytes, eviction)
            with partial.open("wb") as file:
                file.truncate(shard.bytes)  # reserves the space: other processes count it
        digest = hashlib.sha256()
        with partial.open("r+b") as file:
            for block in read_blocks(url):
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

    def _evict(self, size: int, eviction: Eviction) -> None:
        """Remove files until `size` more bytes fit, of those that may be removed.

        Downloads in progress count, and are not removed.
        """
        files = self.files()
        if self._remove_abandoned(files):
            files = self.files()
        free = self.limit_bytes - sum(file.bytes for file in files)
        for file in eviction([file for file in files if not file.in_progress]):
            if free >= size:
                break
            (self.folder / file.name).unlink(missing_ok=True)
            free += file.bytes


def _read(file: BinaryIO, begin: int, end: int) -> bytes:
    with file:
        with suppress(PermissionError):  # another user's file
            os.utime(file.fileno())  # marks it as the most recently used
        file.seek(begin)
        return file.read(end - begin)
