"""Samples that are fetched in order: many at a time, within bounds, the same as local ones."""

import asyncio
import dataclasses
import shutil
from contextlib import closing

import pytest
import torch

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.data import fetch as fetching
from stargan_dist.data import images
from stargan_dist.data.cache import ShardCache
from stargan_dist.data.fetch import Wanted, fetch, fetch_in_order
from stargan_dist.data.images import LoadedImages, domain_images, load_images
from stargan_dist.data.index import read_index, read_sample_table
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.split import load_split
from stargan_dist.errors import UserError
from stargan_dist.shards.build import build
from tests.data.test_stream import DAMAGE, damaged_shard, stall


@pytest.fixture
def far(shards, http):
    """The shards on a server, and the server."""
    shutil.copytree(shards, http.folder, dirs_exist_ok=True)
    return http


def open_split(url, split="train", cache=None):
    return ShardReader(url, read_index(url), split, cache)


def all_locations(reader):
    domains = range(len(reader.index.domains))
    return [reader.locate(d, i) for d in domains for i in range(reader.num_images(d))]


def assert_equal(split, expected):
    for field in dataclasses.fields(split):
        value, other = getattr(split, field.name), getattr(expected, field.name)
        assert torch.equal(value, other) if torch.is_tensor(value) else value == other, field.name


@pytest.mark.parametrize("options", [{}, {"first": 7, "per_domain": 5, "domains": 2}])
def test_a_split_is_loaded_with_many_requests_at_a_time(shards, far, options):
    far.delay_seconds = 0.2
    far.log.clear()
    reader = open_split(far.url)
    assert_equal(load_split(reader, 32, **options), load_split(open_split(shards), 32, **options))
    assert far.peak >= (10 if not options else 8)
    assert {n for path, n in far.gets().items() if path.endswith(".json")} == {1}
    assert not reader.fetched


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d is not stall], ids=lambda f: f.__name__)
def test_faults_are_those_without_fetching_before(far, monkeypatch, damage):
    storage.configure(StorageConfig(tries=2, wait_seconds=0.0))
    damage(far, damaged_shard(far))
    monkeypatch.setattr(fetching, "CHUNK_SAMPLES", 5)

    def outcome():
        with pytest.raises(UserError) as caught:
            load_split(open_split(far.url), 32)
        return load_split(open_split(far.url), 32, replace_unreadable=True), str(caught.value)

    fetched = outcome()
    with monkeypatch.context() as patch:
        patch.setattr(ShardReader, "is_far", False)
        expected = outcome()
    assert_equal(fetched[0], expected[0])
    assert fetched[1] == expected[1]


# A file that is missing is not requested again by patient reads. The table and the sample must not
# both be missing: the second fault could reach such a read.
@pytest.mark.parametrize(("fault", "kinds"), [
    ("404", ["tar"]), ("404", ["json"]), ("429", ["tar", "json"]), ("503", ["tar", "json"]),
    ("reset", ["tar", "json"]),
])  # fmt: skip
def test_requests_that_fail_once_are_repeated(shards, far, fault, kinds):
    storage.configure(StorageConfig(tries=2, wait_seconds=0.0))
    reader = open_split(far.url)
    far.faults |= {kind: [fault] for kind in kinds}
    assert_equal(load_split(reader, 32), load_split(open_split(shards), 32))


def wait_for(coroutine):
    return storage.start(coroutine).result()


def test_samples_beyond_a_limit_of_bytes_are_left_out(far):
    reader = open_split(far.url)
    shard = reader.index.splits["train"]["dog"][0]
    offsets = read_sample_table(far.url, shard).offsets
    wanted = [Wanted(reader, shard, number) for number in range(4)]
    fetched = wait_for(fetch(wanted, int(offsets[3])))
    assert sorted(number for _, _, number in fetched) == [0, 1, 2]
    assert not wait_for(fetch(wanted, int(offsets[1]) - 1))


def test_chunks_are_bounded(shards, far, monkeypatch):
    reader = open_split(far.url)
    locations = all_locations(reader)
    mean = max(shard.bytes // shard.samples for shard in reader.index.shards())
    for limits in ({"CHUNK_SAMPLES": 4}, {"CHUNK_BYTES": 4 * mean}, {"CHUNK_BYTES": 1}):
        for name, value in limits.items():
            monkeypatch.setattr(fetching, name, value)
        sizes = [len(chunk) for chunk in fetching._chunks(reader, locations)]
        assert sum(sizes) == len(locations)
        assert max(sizes) == (1 if limits.get("CHUNK_BYTES") == 1 else 4)


def test_no_more_than_two_chunks_are_requested(far, monkeypatch):
    monkeypatch.setattr(fetching, "CHUNK_SAMPLES", 4)
    reader = open_split(far.url)
    for number, _ in enumerate(fetch_in_order(reader, all_locations(reader))):
        tars = sum(n for path, n in far.gets().items() if path.endswith(".tar"))
        assert tars <= 4 * (number // 4 + 2)
        assert len(reader.fetched) == min(4, 27 - number // 4 * 4)


@pytest.mark.parametrize("kind", ["local", "cache"])
def test_local_files_and_caches_are_not_fetched(shards, far, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", None)
    expected = all_locations(open_split(shards))
    cache = ShardCache(str(tmp_path / "cache"), 2**30)
    reader = open_split(shards) if kind == "local" else open_split(str(far.folder), cache=cache)
    assert [*fetch_in_order(reader, expected)] == expected


@pytest.fixture(scope="module")
def large(animals, tmp_path_factory):
    """Shards of 12 images, one for each domain."""
    dest = str(tmp_path_factory.mktemp("large") / "set")
    build(str(animals), dest, val_fraction=0.0)
    return dest


def load(url, workers, start_method="fork", images_read=12):
    reader, options = open_split(url), {"start_method": start_method, "pin_memory": False}
    batches = [[i] for i in range(images_read)]
    with closing(
        load_images(domain_images(reader, 1), 32, batches, workers=workers, **options)
    ) as loaded:
        return torch.cat([batch.images for batch in loaded])


@pytest.mark.parametrize(
    ("workers", "start_method", "under_way"),
    [(0, "fork", 10), (2, "fork", 4), pytest.param(2, "forkserver", 4, marks=pytest.mark.slow)],
)
def test_images_of_a_domain_are_loaded_with_many_requests_at_a_time(
    large, http, monkeypatch, workers, start_method, under_way
):
    monkeypatch.setattr(images, "MIN_BATCHES_PER_WORKER", 1)
    shutil.copytree(large, http.folder, dirs_exist_ok=True)
    expected = load(large, 0)
    http.delay_seconds = 0.2
    assert torch.equal(load(http.url, workers, start_method), expected)
    assert http.peak >= under_way
    assert sorted(http.gets().values()) == [1, max(1, workers), 12]  # index, table, samples


def test_images_are_loaded_by_more_workers_than_batches(large, http, monkeypatch):
    monkeypatch.setattr(images, "MIN_BATCHES_PER_WORKER", 1)
    shutil.copytree(large, http.folder, dirs_exist_ok=True)
    expected = load(large, 0, images_read=2)
    assert torch.equal(load(http.url, 3, images_read=2), expected)


def test_images_are_not_loaded_out_of_order(shards):
    dataset = LoadedImages(domain_images(open_split(shards), 1), 32, [[0, 1]])
    with pytest.raises(AssertionError):
        dataset[1]
