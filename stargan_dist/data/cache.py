"""Whole shards on a local disk: bounded, and shared by all processes of a node."""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from stargan_dist import storage
from stargan_dist.data.index import Shard
from stargan_dist.errors import UserError
from stargan_dist.storage import with_retries

LOCKS = 64
ABANDONED_SECONDS = 3600.0


class ShardCache:
    """Shards by full URL and hash. What was used longest ago makes room. Picklable.

    Args:
        folder: local; made if it is not there. Several caches may share it.
        limit_bytes: of all files in it. Downloads under way count, and may exceed it while
            several need room at once.
    """

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = Path(folder), limit_bytes

    def read_range(self, url: str, shard: Shard, begin: int, end: int) -> bytes:
        """The bytes [begin, end) of the shard at a URL, which is downloaded if it is not here.

        Raises:
            OSError: it cannot be downloaded, or arrives damaged.
            UserError: it is larger than the cache.
        """
        with self._open(url, shard) as file:
            os.utime(file.fileno())  # used now: others make room first
            file.seek(begin)
            return file.read(end - begin)

    def discard(self, url: str, shard: Shard) -> None:
        """Forget a shard, whose file turned out to be damaged."""
        self._path(url, shard).unlink(missing_ok=True)

    def _path(self, url: str, shard: Shard) -> Path:
        return self.folder / hashlib.sha256(f"{url} {shard.sha256}".encode()).hexdigest()

    def _open(self, url: str, shard: Shard) -> BinaryIO:
        path = self._path(url, shard)
        with suppress(FileNotFoundError):
            return path.open("rb")
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".lock-{int(path.name[:8], 16) % LOCKS}"):
            with suppress(FileNotFoundError):  # another process was faster
                return path.open("rb")
            return self._download(url, shard, path)

    def _download(self, url: str, shard: Shard, path: Path) -> BinaryIO:
        """Returns the open file: whoever makes room from now on does not take it from us."""
        if shard.bytes > self.limit_bytes:
            raise UserError(
                f"the cache {self.folder} is bounded to {self.limit_bytes} bytes, a shard has "
                f"{shard.bytes}: raise data.cache_gib"
            )
        partial = path.with_suffix(".partial")
        try:
            with_retries(lambda: self._try(url, shard, partial))
            file = partial.open("rb")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        with self._lock():
            self._trim(0)  # several downloads at once may have taken more room than there is
        return file

    def _try(self, url: str, shard: Shard, partial: Path) -> None:
        with self._lock():
            partial.unlink(missing_ok=True)
            self._trim(shard.bytes)
            with partial.open("wb") as file:
                file.truncate(shard.bytes)  # reserved: others count it
        digest = hashlib.sha256()
        with partial.open("r+b") as file:
            for block in storage.read_blocks(url):
                digest.update(block)
                file.write(block)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())  # after a power cut, what has its name has its bytes
        if digest.hexdigest() != shard.sha256:
            raise OSError("its hash is not the index's: it is damaged, truncated or another one")

    def _lock(self) -> FileLock:
        """Held while files are counted and removed."""
        return FileLock(self.folder / ".lock")

    def _trim(self, size: int) -> None:
        """Remove what was used longest ago until `size` more bytes find room."""
        files = list(self._files())
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
            if total + size <= self.limit_bytes:
                break
            under_way = path.suffix and time.time() - stat.st_mtime < ABANDONED_SECONDS
            if not under_way:
                path.unlink(missing_ok=True)
                total -= stat.st_size

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        for entry in os.scandir(self.folder):
            # Another process may just have finished its download, and renamed the file.
            with suppress(FileNotFoundError):
                if not entry.name.startswith(".lock"):
                    yield entry.stat(), Path(entry)
