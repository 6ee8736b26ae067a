"""Whole shards on a local disk: bounded, and shared by all processes of a node."""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from stargan_dist import storage
from stargan_dist.errors import UserError
from stargan_dist.shards.index import Shard

LOCKS = 64
ABANDONED_SECONDS = 3600.0


class ShardCache:
    """Shards by full URL and hash. What was used longest ago makes room. Picklable.

    Args:
        folder: local; made if it is not there. Several caches may share it.
        limit_bytes: of all files in it, downloads under way included.
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

    def _open(self, url: str, shard: Shard) -> BinaryIO:
        key = hashlib.sha256(f"{url} {shard.sha256}".encode()).hexdigest()
        path = self.folder / key
        with suppress(FileNotFoundError):
            return path.open("rb")
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".lock-{int(key[:8], 16) % LOCKS}"):
            with suppress(FileNotFoundError):  # another process was faster
                return path.open("rb")
            return self._download(url, shard, path)

    def _download(self, url: str, shard: Shard, path: Path) -> BinaryIO:
        """Returns the open file: whoever makes room from now on does not take it from us."""
        partial = path.with_suffix(".partial")
        try:
            storage.patiently(lambda: self._try(url, shard, partial))
            file = partial.open("rb")
            partial.replace(path)
            return file
        finally:
            partial.unlink(missing_ok=True)

    def _try(self, url: str, shard: Shard, partial: Path) -> None:
        self._make_room(shard.bytes, partial)
        digest = hashlib.sha256()
        with partial.open("r+b") as file:
            for block in storage.read_blocks(url):
                digest.update(block)
                file.write(block)
            file.truncate()
        if digest.hexdigest() != shard.sha256:
            raise OSError("its hash is not the index's: it is damaged, truncated or another one")

    def _make_room(self, size: int, partial: Path) -> None:
        """Reserve room for a download by a file of its size, removing what was used least."""
        if size > self.limit_bytes:
            raise UserError(
                f"the cache {self.folder} is bounded to {self.limit_bytes} bytes, a shard has "
                f"{size}: raise data.cache_gib"
            )
        with FileLock(self.folder / ".lock"):
            partial.unlink(missing_ok=True)
            files = [(entry.stat(), Path(entry)) for entry in os.scandir(self.folder)]
            files = [(stat, path) for stat, path in files if not path.name.startswith(".lock")]
            total = sum(stat.st_size for stat, _ in files)
            for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
                if total + size <= self.limit_bytes:
                    break
                in_use = path.suffix and time.time() - stat.st_mtime < ABANDONED_SECONDS
                if not in_use:
                    path.unlink(missing_ok=True)
                    total -= stat.st_size
            with partial.open("wb") as file:
                file.truncate(size)
