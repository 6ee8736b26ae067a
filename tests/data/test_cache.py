"""The shard cache: downloads, eviction, and concurrent processes."""

import errno
import hashlib
import multiprocessing
import os

import pytest

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.data.cache import CacheFault, ShardCache
from stargan_dist.data.index import Shard
from stargan_dist.errors import UserError

RETRY_AT_ONCE = StorageConfig(tries=3, wait_seconds=0.0)


def write_shard(url, data):
    """Write a file; return its entry in an index."""
    storage.write_bytes(url, data)
    return Shard(url, 1, len(data), hashlib.sha256(data).hexdigest(), [1, 1], [1, 1])


def cache_bytes(cache):
    """Return the bytes of all files of a cache."""
    return sum(p.stat().st_size for p in cache.folder.iterdir() if not p.name.startswith(".lock"))


def test_a_shard_is_downloaded_once(http, tmp_path):
    shard = write_shard(str(tmp_path / "served" / "a.tar"), bytes(range(256)))
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    for begin in (3, 100, 250):
        data = cache.read_range(f"{http.url}/a.tar", shard, begin, begin + 5)
        assert data == bytes(range(begin, begin + 5))
    assert http.gets() == {"/a.tar": 1}


def test_shards_of_two_datasets_with_the_same_name_are_kept_apart(tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    for name in ("v1", "v2"):
        url = str(tmp_path / name / "000.tar")
        assert cache.read_range(url, write_shard(url, name.encode()), 0, 2) == name.encode()


def test_the_least_recently_used_shard_is_evicted(tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 250)
    urls = [str(tmp_path / f"{i}.tar") for i in range(3)]
    shards = [write_shard(url, bytes([i]) * 100) for i, url in enumerate(urls)]
    for second, i in enumerate((0, 1, 0, 2)):
        cache.read_range(urls[i], shards[i], 0, 1)
        for path in cache.folder.iterdir():  # timestamps of filesystems are coarse
            if path.stat().st_mtime > 1e9:
                os.utime(path, (second, second))
    for url in urls:
        storage.remove_file(url)
    assert cache_bytes(cache) <= 250
    assert [cache.read_range(urls[i], shards[i], 0, 1) for i in (0, 2)] == [b"\0", b"\2"]
    with pytest.raises(FileNotFoundError):
        cache.read_range(urls[1], shards[1], 0, 1)


def test_an_open_file_stays_readable_after_its_eviction(tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 150)
    urls = [str(tmp_path / f"{i}.tar") for i in range(2)]
    shards = [write_shard(url, bytes([i]) * 100) for i, url in enumerate(urls)]
    with cache.download(urls[0], shards[0]) as file:
        cache.read_range(urls[1], shards[1], 0, 1)
        assert file.read() == b"\0" * 100


def test_a_damaged_download_is_not_cached(tmp_path):
    storage.configure(RETRY_AT_ONCE)
    url = str(tmp_path / "a.tar")
    shard = write_shard(url, b"x" * 100)
    storage.write_bytes(url, b"x" * 99 + b"y")
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    with pytest.raises(OSError, match="hash is not the index's"):
        cache.read_range(url, shard, 0, 1)
    assert cache_bytes(cache) == 0


def test_a_longer_download_takes_no_more_than_was_reserved(tmp_path, monkeypatch):
    storage.configure(RETRY_AT_ONCE)
    shard = write_shard(str(tmp_path / "a.tar"), b"x" * 100)
    taken = []

    def endless(url):
        while True:
            taken.append(url)
            yield b"x" * 40

    monkeypatch.setattr(storage, "read_blocks", endless)
    with pytest.raises(OSError, match="it is longer than the 100 bytes of the index"):
        ShardCache(str(tmp_path / "cache"), 1000).read_range("url", shard, 0, 1)
    assert len(taken) == 3 * RETRY_AT_ONCE.tries


def test_an_interrupted_download_is_retried(http, tmp_path):
    storage.configure(RETRY_AT_ONCE)
    shard = write_shard(str(tmp_path / "served" / "a.tar"), b"x" * 100)
    http.faults["a.tar"] = ["reset", "500"]
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    assert cache.read_range(f"{http.url}/a.tar", shard, 0, 2) == b"xx"
    assert http.faults["a.tar"] == []


def test_a_shard_larger_than_the_cache_is_rejected(tmp_path):
    url = str(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"raise data\.cache_gib"):
        ShardCache(str(tmp_path / "cache"), 10).read_range(url, write_shard(url, b"x" * 11), 0, 1)


def read_shards(folder, urls, shards, seed):
    """Read 60 ranges in an order of the seed; return True if all bytes are right."""
    cache = ShardCache(folder, 350)
    order = [(seed * 7 + i * 5) % len(shards) for i in range(60)]
    return all(cache.read_range(urls[i], shards[i], 10, 12) == bytes([i, i]) for i in order)


def test_processes_share_a_cache_that_is_too_small(tmp_path):
    """Four processes read the right bytes of eight shards through a cache for three."""
    urls = [str(tmp_path / f"{i}.tar") for i in range(8)]
    shards = [write_shard(url, bytes([i]) * 100) for i, url in enumerate(urls)]
    folder = str(tmp_path / "cache")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        results = pool.starmap(read_shards, [(folder, urls, shards, seed) for seed in range(4)])
        pool.close()
        pool.join()  # leaving the block would signal them, which a forked process may ignore
    assert results == [True] * 4
    assert cache_bytes(ShardCache(folder, 350)) <= 350


def test_partial_files_of_killed_processes_are_evicted(tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 150)
    cache.folder.mkdir()
    leftover = cache.folder / f"{'0' * 64}.partial"
    leftover.write_bytes(b"x" * 100)
    url = str(tmp_path / "a.tar")
    shard = write_shard(url, b"y" * 100)
    with cache._download_lock(leftover.name):  # as while its process lives
        cache.read_range(url, shard, 0, 1)
        assert leftover.exists()
    cache.discard(url, shard)
    cache.read_range(url, shard, 0, 1)
    assert not leftover.exists()


def test_other_files_in_the_folder_are_neither_counted_nor_removed(tmp_path):
    cache = ShardCache(str(tmp_path / "disk"), 150)
    (cache.folder / "folder").mkdir(parents=True)
    others = [cache.folder / name for name in ("thesis.tex", "download.partial", "0.tar")]
    for path in others:
        path.write_bytes(b"x" * 200)
        os.utime(path, (1, 1))
    urls = [str(tmp_path / f"{i}.tar") for i in range(2)]
    shards = [write_shard(url, bytes([i]) * 100) for i, url in enumerate(urls)]
    for url, shard in zip(urls, shards, strict=True):
        cache.read_range(url, shard, 0, 1)
    cache.remove_abandoned()
    assert all(path.exists() for path in others)
    assert [cache.has(url, shard) for url, shard in zip(urls, shards, strict=True)] == [False, True]


def test_files_of_another_user_are_read(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refuse)
    url = str(tmp_path / "a.tar")
    shard = write_shard(url, b"x" * 100)
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    assert cache.read_range(url, shard, 0, 2) == cache.read_cached(url, shard, 0, 2) == b"xx"


def test_a_full_disk_of_the_cache_is_not_the_fault_of_a_shard(tmp_path, monkeypatch):
    """The disk is found full when the download is flushed."""
    storage.configure(RETRY_AT_ONCE)
    url = str(tmp_path / "a.tar")
    shard = write_shard(url, b"x" * 100_000)
    cache = ShardCache(str(tmp_path / "cache"), 1_000_000)
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CacheFault, match=r"disk of the cache .*cache is full .*data\.cache_gib"):
        cache.read_range(url, shard, 0, 1)
    assert cache_bytes(cache) == 0


def full_disk(_descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
