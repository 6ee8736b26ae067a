import hashlib
import multiprocessing
import os

import pytest

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.data.cache import ShardCache
from stargan_dist.data.index import Shard
from stargan_dist.errors import UserError

NO_WAIT = StorageConfig(tries=3, wait_seconds=0.0)


def put(url, data):
    storage.write_bytes(url, data)
    return Shard(url, 1, len(data), hashlib.sha256(data).hexdigest(), [1, 1], [1, 1])


def held(cache):
    """The bytes of all files of a cache."""
    return sum(p.stat().st_size for p in cache.folder.iterdir() if not p.name.startswith(".lock"))


def test_a_shard_is_downloaded_once(http, tmp_path):
    shard = put(str(tmp_path / "served" / "a.tar"), bytes(range(256)))
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    for begin in (3, 100, 250):
        data = cache.read_range(f"{http.url}/a.tar", shard, begin, begin + 5)
        assert data == bytes(range(begin, begin + 5))
    assert http.gets() == {"/a.tar": 1}


def test_shards_of_one_name_in_two_sets_are_kept_apart(tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    for name in ("v1", "v2"):
        url = str(tmp_path / name / "000.tar")
        assert cache.read_range(url, put(url, name.encode()), 0, 2) == name.encode()


def test_what_was_used_longest_ago_makes_room(tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 250)
    urls = [str(tmp_path / f"{i}.tar") for i in range(3)]
    shards = [put(url, bytes([i]) * 100) for i, url in enumerate(urls)]
    for second, i in enumerate((0, 1, 0, 2)):
        cache.read_range(urls[i], shards[i], 0, 1)
        for path in cache.folder.iterdir():  # clocks of file systems are coarse
            if path.stat().st_mtime > 1e9:
                os.utime(path, (second, second))
    for url in urls:
        storage.remove_file(url)
    assert held(cache) <= 250
    assert [cache.read_range(urls[i], shards[i], 0, 1) for i in (0, 2)] == [b"\0", b"\2"]
    with pytest.raises(FileNotFoundError):
        cache.read_range(urls[1], shards[1], 0, 1)


def test_a_reader_keeps_the_file_that_makes_room(tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 150)
    urls = [str(tmp_path / f"{i}.tar") for i in range(2)]
    shards = [put(url, bytes([i]) * 100) for i, url in enumerate(urls)]
    with cache._open(urls[0], shards[0]) as file:
        cache.read_range(urls[1], shards[1], 0, 1)
        assert file.read() == b"\0" * 100


def test_a_damaged_shard_is_not_kept(tmp_path):
    storage.configure(NO_WAIT)
    url = str(tmp_path / "a.tar")
    shard = put(url, b"x" * 100)
    storage.write_bytes(url, b"x" * 99 + b"y")
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    with pytest.raises(OSError, match="hash is not the index's"):
        cache.read_range(url, shard, 0, 1)
    assert held(cache) == 0


def test_a_download_that_breaks_off_is_begun_again(http, tmp_path):
    storage.configure(NO_WAIT)
    shard = put(str(tmp_path / "served" / "a.tar"), b"x" * 100)
    http.faults["a.tar"] = ["reset", "500"]
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    assert cache.read_range(f"{http.url}/a.tar", shard, 0, 2) == b"xx"
    assert http.faults["a.tar"] == []


def test_a_shard_larger_than_the_cache_is_refused(tmp_path):
    url = str(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"raise data\.cache_gib"):
        ShardCache(str(tmp_path / "cache"), 10).read_range(url, put(url, b"x" * 11), 0, 1)


def read_some(folder, url_of, shards, seed):
    cache = ShardCache(folder, 350)
    order = [(seed * 7 + i * 5) % len(shards) for i in range(60)]
    return all(cache.read_range(url_of[i], shards[i], 10, 12) == bytes([i, i]) for i in order)


def test_processes_share_a_cache_that_is_too_small(tmp_path):
    """Eight shards, room for three, four processes: each reads the right bytes."""
    urls = [str(tmp_path / f"{i}.tar") for i in range(8)]
    shards = [put(url, bytes([i]) * 100) for i, url in enumerate(urls)]
    folder = str(tmp_path / "cache")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        right = pool.starmap(read_some, [(folder, urls, shards, seed) for seed in range(4)])
        pool.close()
        pool.join()  # leaving the block alone would kill them, which a forked process may not heed
    assert right == [True] * 4
    assert held(ShardCache(folder, 350)) <= 350


def test_what_a_killed_process_left_makes_room(tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 150)
    cache.folder.mkdir()
    left = cache.folder / "0.partial"
    left.write_bytes(b"x" * 100)
    os.utime(left, (1, 1))
    url = str(tmp_path / "a.tar")
    cache.read_range(url, put(url, b"y" * 100), 0, 1)
    assert not left.exists()
