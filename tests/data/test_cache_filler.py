"""A cache is filled behind a training: in the order of use, once a node, within its limit."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.data import cache_filler
from stargan_dist.data.cache import ShardCache
from stargan_dist.data.cache_filler import CacheFiller
from stargan_dist.data.index import Index
from stargan_dist.data.labels import domain_labels
from stargan_dist.data.order import WINDOW_SHARDS
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.sources import DataSources
from stargan_dist.data.stream import Slots
from tests.conftest import ROOT
from tests.data.test_cache import cache_bytes, write_shard
from tests.data.test_stream import STEPS, assert_same, load, load_world, make_slots

AHEAD = {"ahead_bytes": 2**26}
UNLIMITED = 2**30
SHARD_BYTES, SHARD_SAMPLES, SHARDS = 100, 4, 3 * WINDOW_SHARDS


@pytest.mark.parametrize("limit_bytes", [UNLIMITED, 20_000])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_cache_that_is_filled_behind_does_not_change_the_sequence(
    far, tmp_path, sequence, ranks, workers, limit_bytes, monkeypatch
):
    monkeypatch.setattr(cache_filler, "POLL_SECONDS", 0.01)
    cache = ShardCache(str(tmp_path / "cache"), limit_bytes)
    slots = make_slots(far.url, cache)
    for steps in (range(2), range(2, STEPS)):
        batches = load_world(slots, steps, ranks, workers=workers, **AHEAD)
        assert_same(batches, sequence[steps.start : steps.stop])
        assert cache_bytes(cache) <= limit_bytes


def test_no_batch_waits_for_a_shard(far, tmp_path, sequence, monkeypatch):
    monkeypatch.setattr(CacheFiller, "download", lambda *_: time.sleep(0.01))
    cache = ShardCache(str(tmp_path / "cache"), UNLIMITED)
    slots = make_slots(far.url, cache)
    far.faults["tar"] = ["none"] * 20 + ["503"] * 3  # samples that are read again when needed
    assert_same(load(slots, **AHEAD), sequence)
    assert not cache.files()


# A dataset of two domains with many shards, whose contents do not matter.


@pytest.fixture
def make_filler(tmp_path):
    """Return a function that makes a filler of a cache; its thread is not started."""
    storage.configure(StorageConfig(tries=1, wait_seconds=0.0))
    folder = tmp_path / "shards"
    shards = {domain: [write(folder, domain, i) for i in range(SHARDS)] for domain in "01"}
    index = Index([*shards], {"train": shards}, "")

    def make(limit_bytes=UNLIMITED, seed=3):
        cache = ShardCache(str(tmp_path / "cache"), limit_bytes)
        cache.folder.mkdir(exist_ok=True)
        sources = DataSources(
            [ShardReader(str(folder), index, "train", cache)], domain_labels(index.domains)
        )
        slots = Slots(
            sources, seed, image_size=8, latent_dim=1, batch_size=4, reference_turns=(False,)
        )
        return CacheFiller(slots, cache)

    return make


def write(folder, domain, number):
    """Write a shard; return its entry in an index."""
    name = f"train/000{domain}-x-{number:06d}.tar"
    shard = write_shard(str(folder / name), name.encode().zfill(SHARD_BYTES))
    return replace(shard, name=name, samples=SHARD_SAMPLES)


def fill(filler, downloads=1000):
    """Download shards that are missing, until none is; return their URLs."""
    urls = []
    while len(urls) < downloads and (files := filler.missing_files()):
        filler.download(files[0])
        urls.append(files[0].url)
    return urls


def test_shards_are_downloaded_once_in_the_order_of_their_use(make_filler):
    filler = make_filler()
    urls = [file.url for file in filler.next_files()]
    assert fill(filler) == urls
    assert len(set(urls)) == 2 * SHARDS


def test_with_a_small_cache_each_shard_is_downloaded_before_its_use(make_filler):
    """The cache holds one window of shards of each domain, and a few shards more."""
    filler = make_filler(limit_bytes=5 * WINDOW_SHARDS // 2 * SHARD_BYTES)
    downloads = 0
    for filler.slot in range(0, 2 * 2 * SHARDS * SHARD_SAMPLES, 16):
        downloads += len(fill(filler))
        cached = {file.name for file in filler.cache.files()}
        samples = filler.slots.samples(range(filler.slot, filler.slot + 16))
        assert all(reader.is_cached(reader.shard(location)) for reader, location in samples)
        assert len(cached) * SHARD_BYTES <= filler.cache.limit_bytes
    # A shard of two consecutive windows, of two passes, is downloaded once.
    assert 1.5 < downloads / (2 * SHARDS) < 2.0


def test_a_tiny_cache_keeps_its_shards_until_their_window_ends(make_filler):
    filler = make_filler(limit_bytes=5 * SHARD_BYTES)
    assert len(fill(filler)) == 5
    for filler.slot in range(0, 2 * WINDOW_SHARDS * SHARD_SAMPLES, 8):
        assert not fill(filler)
    filler.slot += 8
    assert fill(filler)


def test_the_file_that_is_read_last_is_removed_first_whenever_it_was_used(make_filler):
    """Samples that are read soon were seen in the cache, and are not fetched ahead."""
    filler = make_filler()
    fill(filler)
    order = filler.next_files()
    for seconds, file in enumerate(order):  # those that are read last were used last
        os.utime(filler.cache.folder / file.name, (seconds, seconds))
    (filler.cache.folder / order[0].name).unlink()
    of_another_training = filler.cache.folder / ("a" * 64)  # goes before all of this one
    of_another_training.write_bytes(bytes(SHARD_BYTES))
    os.utime(of_another_training, (10_000, 10_000))
    filler.missing_files()
    filler._kept = {order[0].name}
    filler.cache.limit_bytes = 50 * SHARD_BYTES
    filler.download(order[0])
    assert {file.name for file in filler.cache.files()} == {file.name for file in order[:50]}


def test_files_that_another_training_uses_are_not_removed(make_filler):
    filler = make_filler(limit_bytes=5 * SHARD_BYTES)
    used, unused = (filler.cache.folder / (letter * 64) for letter in "ab")
    for path in (used, unused):
        path.write_bytes(bytes(SHARD_BYTES))
    os.utime(unused, (1, 1))
    assert len(fill(filler)) == 4
    assert (used.exists(), unused.exists()) == (True, False)
    hundred_seconds_ago = time.time() - 100
    os.utime(used, (hundred_seconds_ago, hundred_seconds_ago))
    filler.slot = 2 * SHARDS * SHARD_SAMPLES // 2  # the files of this training are not needed
    assert fill(filler)
    assert used.exists()


def test_trainings_of_one_dataset_do_not_remove_what_the_other_one_reads(make_filler):
    """Together they want more than fits: each gets a part, and nothing is downloaded twice."""
    limit_bytes = 40 * SHARD_BYTES
    fillers = [make_filler(limit_bytes, seed) for seed in (3, 4)]
    urls = [url for _ in range(100) for filler in fillers for url in fill(filler, 1)]
    assert len(urls) == len(set(urls)) == 40
    assert sum(file.bytes for file in fillers[0].cache.files()) == limit_bytes


def test_shards_of_an_ended_window_make_room_beside_another_training(make_filler):
    fillers = [make_filler(20 * SHARD_BYTES, seed) for seed in (3, 4)]
    for filler in fillers:
        fill(filler)
    fillers[0].slot = 2 * SHARDS * SHARD_SAMPLES // 2
    assert fill(fillers[0])


def test_a_shard_that_cannot_be_cached_is_reported_once_and_the_others_follow(make_filler, caplog):
    filler = make_filler()
    bad = filler.next_files()[3]
    Path(bad.url).write_bytes(b"x" * SHARD_BYTES)
    assert len(fill(filler)) == 2 * SHARDS
    (record,) = caplog.records
    assert "its hash is not the index's" in record.getMessage()
    assert bad.url in record.getMessage()


def test_one_process_of_a_node_fills_and_another_one_takes_over(make_filler, monkeypatch):
    monkeypatch.setattr(cache_filler, "POLL_SECONDS", 0.01)
    first, second = make_filler(), make_filler()
    reached = threading.Event()
    monkeypatch.setattr(first, "download", lambda _: reached.set() or time.sleep(0.01))
    first.start()
    assert reached.wait(10)
    second.start()
    time.sleep(0.2)
    assert not second.cache.files()
    first.stop()
    wait_for(second.cache.files)
    second.stop()


def test_a_fault_of_the_folder_is_reported_and_filling_goes_on(make_filler, monkeypatch, caplog):
    for name in ("POLL_SECONDS", "RETRY_SECONDS"):
        monkeypatch.setattr(cache_filler, name, 0.01)
    filler = make_filler()
    faults = [PermissionError("the lock of another user")]
    lock = cache_filler.FileLock.acquire

    def acquire(self, *args, **options):
        if "fill" in str(self.lock_file) and faults:
            raise faults.pop()
        return lock(self, *args, **options)

    monkeypatch.setattr(cache_filler.FileLock, "acquire", acquire)
    filler.start()
    wait_for(filler.cache.files)
    filler.stop()
    assert "is not filled: the lock of another user" in caplog.text


def wait_for(condition):
    """Wait until a condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_downloading(cache):
    """Return True if a download is under way."""
    return cache.folder.exists() and any(file.in_progress for file in cache.files())


def start_filler(url, cache):
    """Start to fill a cache, and wait until a download is under way."""
    cache.folder.mkdir(exist_ok=True)
    filler = CacheFiller(make_slots(url, cache), cache)
    filler.start()
    wait_for(lambda: is_downloading(cache))
    return filler


def test_a_filler_that_stops_removes_its_incomplete_download(far, tmp_path):
    far.delay_seconds = 0.5
    cache = ShardCache(str(tmp_path / "cache"), UNLIMITED)
    start_filler(far.url, cache).stop()
    assert cache.files() == []


@pytest.mark.parametrize("fault", ["503", "stall"])
def test_a_filler_that_waits_for_a_store_leaves_nothing_either(far, tmp_path, fault, monkeypatch):
    monkeypatch.setattr(cache_filler, "STOP_SECONDS", 0.1)
    storage.configure(StorageConfig(tries=4, wait_seconds=1.0, timeout_seconds=1.0))
    far.faults["tar"] = [fault] * 100
    cache = ShardCache(str(tmp_path / "cache"), UNLIMITED)
    filler = start_filler(far.url, cache)
    filler.stop()
    assert filler._thread.is_alive() and cache.files() == []
    filler._thread.join(10)  # another try
    assert not filler._thread.is_alive() and cache.files() == []


def test_a_killed_process_holds_no_lock_and_the_next_one_removes_its_download(far, tmp_path):
    far.faults[rf"\.tar bytes=0-{storage.BLOCK_BYTES - 1}"] = ["stall"]
    cache = ShardCache(str(tmp_path / "cache"), UNLIMITED)
    process = multiprocessing.get_context("fork").Process(
        target=lambda: start_filler(far.url, cache) and time.sleep(1000)
    )
    process.start()
    wait_for(lambda: is_downloading(cache))
    process.kill()
    process.join()
    assert is_downloading(cache)
    filler = start_filler(far.url, cache)
    wait_for(lambda: not filler.missing_files())
    filler.stop()
    assert not is_downloading(cache)


END_EARLY = """
import sys
from stargan_dist.data.cache import ShardCache
from stargan_dist.data.loading import iterate_batches, training_loader
from stargan_dist.data.skipped import SkippedSamples
from tests.data.test_stream import make_slots

loader = training_loader(
    make_slots(sys.argv[1], ShardCache(sys.argv[2], 2**30)), range(6),
    rank=0, world_size=1, workers=int(sys.argv[3]), ahead_bytes=2**26,
)
batches = iterate_batches(loader, SkippedSamples())
next(batches)
sys.stdin.read()
batches.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_that_ends_removes_its_incomplete_download_silently(far, tmp_path, workers):
    far.delay_seconds = 0.3
    cache = ShardCache(str(tmp_path / "cache"), UNLIMITED)
    command = [sys.executable, "-c", END_EARLY, far.url, str(cache.folder), str(workers)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=ROOT, text=True, **options) as process:
        wait_for(lambda: is_downloading(cache))
        output, _ = process.communicate("")
    assert (process.returncode, output) == (0, "")
    assert not is_downloading(cache)
