"""Batches: one sequence for any world, partial reads, the cache, and unreadable shards."""

import os
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stargan_dist import storage
from stargan_dist.config import DataConfig, StorageConfig
from stargan_dist.data import transforms
from stargan_dist.data.batch import Batch
from stargan_dist.data.cache import ShardCache
from stargan_dist.data.index import read_index
from stargan_dist.data.labels import domain_labels
from stargan_dist.data.loading import iterate_batches, training_loader
from stargan_dist.data.order import Location
from stargan_dist.data.read_ahead import MAX_STARTED
from stargan_dist.data.reader import ShardReader, check_split, open_reader, working_set_bytes
from stargan_dist.data.skipped import SkippedSamples
from stargan_dist.data.sources import DataSources
from stargan_dist.data.split import load_split
from stargan_dist.data.stream import Slots
from stargan_dist.errors import OUTSIDE_FAULT, USER_ERROR, UserError

BATCH_SIZE = 4
STEPS = 6


def make_slots(url, cache=None, batch_size=BATCH_SIZE, **options):
    reader = ShardReader(url, read_index(url), "train", cache)
    sources = DataSources([reader], domain_labels(reader.index.domains))
    return Slots(sources, seed=3, image_size=32, latent_dim=5, batch_size=batch_size, **options)


@pytest.fixture
def slots(shards):
    return make_slots(shards)


def load(slots, steps=range(STEPS), rank=0, world_size=1, skipped=None, meter=None, **options):
    loader = training_loader(
        slots, steps,
        rank=rank, world_size=world_size, **{"workers": 0, "start_method": "fork"} | options,
        pin_memory=False,
    )  # fmt: skip
    return list(iterate_batches(loader, SkippedSamples() if skipped is None else skipped, meter))


def load_world(slots, steps, world_size, **options):
    """Load the global batches, joined from those of all ranks."""
    ranks = [
        load(slots, steps, rank=r, world_size=world_size, **options) for r in range(world_size)
    ]
    return [
        Batch(*(None if t[0] is None else torch.cat(t) for t in zip(*batches, strict=True)))
        for batches in zip(*ranks, strict=True)
    ]


def assert_same(batches, expected_batches):
    assert len(batches) == len(expected_batches)
    for batch, expected_batch in zip(batches, expected_batches, strict=True):
        for name in batch._fields:
            value, expected = getattr(batch, name), getattr(expected_batch, name)
            assert (value is expected is None) or torch.equal(value, expected), name


def test_a_batch_has_the_documented_shapes(slots):
    (batch,) = load(slots, range(1))
    assert batch.x.shape == batch.x_ref.shape == batch.x_ref2.shape == (4, 3, 32, 32)
    assert batch.x.dtype == torch.uint8
    assert batch.y.shape == batch.y_trg.shape == (4,)
    assert batch.z.shape == batch.z2.shape == (4, 5)


# One sequence, independent of ranks and workers.


@pytest.fixture(scope="module")
def sequence(shards):
    """The batches of one process without workers, uninterrupted. No two images are equal."""
    batches = load(make_slots(shards))
    images = {image.numpy().tobytes() for batch in batches for image in batch.x}
    assert len(images) == STEPS * BATCH_SIZE
    return batches


@pytest.mark.parametrize("stop", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("ranks", "workers"), product([1, 2, 4], [0, 1, 3]))
def test_any_world_reads_the_same_sequence_before_and_after_a_resume(
    slots, sequence, ranks, workers, stop
):
    """Read 9 shards of 1 to 4 samples with up to 12 workers."""
    before = load_world(slots, range(stop), ranks, workers=workers)
    assert_same(before, sequence[:stop])
    for resumed_ranks in (1, 2, 4):
        after = load_world(slots, range(stop, STEPS), resumed_ranks, workers=workers)
        assert_same(after, sequence[stop:])


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_any_start_method_reads_the_same_sequence_from_an_object_store(
    shards, sequence, s3, start_method
):
    """Workers receive the storage configuration of this process. They read ahead."""
    for path in Path(shards).rglob("*.*"):
        storage.write_bytes(f"{s3}/set/{path.relative_to(shards)}", path.read_bytes())
    slots = make_slots(f"{s3}/set")
    options = {"workers": 1, "start_method": start_method, "ahead_bytes": 2**26}
    assert_same(load(slots, **options), sequence)


def test_a_forked_worker_reads_an_object_store_that_its_parent_has_read(shards, sequence, s3):
    for path in Path(shards).rglob("*.*"):
        storage.write_bytes(f"{s3}/set/{path.relative_to(shards)}", path.read_bytes())
    slots = make_slots(f"{s3}/set")
    assert_same(load(slots, ahead_bytes=2**26), sequence)
    assert_same(load(slots, workers=2, ahead_bytes=2**26), sequence)


def test_a_cache_does_not_change_the_sequence(shards, sequence, tmp_path):
    cache = ShardCache(str(tmp_path), 2**30)
    assert_same(load(make_slots(shards, cache), workers=2), sequence)
    assert len([p for p in tmp_path.iterdir() if not p.name.startswith(".lock")]) > 2


def test_a_pass_reads_every_image_once(slots):
    size = sum(sum(counts) for counts in slots.images[0].order.counts)
    for first in (0, size):
        locations = [slots.source(slot) for slot in range(first, first + size)]
        keys = [slots.images[0].reader.read(location).key for location in locations]
        assert len(set(keys)) == size


def test_latents_and_augmentations_differ_between_slots(slots):
    batch = load(slots, range(1))[0]
    assert len({tuple(z.tolist()) for z in torch.cat([batch.z, batch.z2])}) == 8
    augmented = torch.stack([torch.from_numpy(transforms.augment(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)), 32,
        np.random.default_rng(i))) for i in range(20)])  # fmt: skip
    assert len({image.numpy().tobytes() for image in augmented}) > 8


# Which bytes are read.


def test_a_reader_returns_the_original_bytes(shards, animals):
    reader = ShardReader(shards, read_index(shards), "val")
    sample = reader.read(Location(1, 0, 1))
    assert sample.metadata.domain == "dog"
    assert sample.image == (animals / sample.metadata.path).read_bytes()


def test_a_rank_reads_only_its_own_samples(shards, http):
    """Check this for a resumed run: the slots before it are not read either."""
    shutil.copytree(shards, http.folder, dirs_exist_ok=True)
    slots = make_slots(http.url)
    http.log.clear()
    load(slots, range(4, 6), rank=1, world_size=2)
    requested = [name for name in http.gets() if name.endswith(".tar")]
    locations = [
        location
        for step in (4, 5)
        for slot in (step * BATCH_SIZE + 2, step * BATCH_SIZE + 3)
        for location in (slots.source(slot), *slots.references(slot))
    ]
    expected = [slots.images[0].reader.shard(location).name for location in locations]
    assert sorted(requested) == sorted({f"/{name}" for name in expected})
    assert sum(http.gets()[name] for name in requested) == len(locations) == 12
    assert all(n == 1 for name, n in http.gets().items() if name.endswith(".json"))
    largest = max(shard.bytes for shard in slots.images[0].reader.index.shards())
    tar_bytes = sum(size for _, path, _, size in http.log if path.endswith(".tar"))
    assert tar_bytes < 12 * largest / 2


def test_servers_without_ranges_need_a_cache(shards, http, tmp_path):
    shutil.copytree(shards, http.folder, dirs_exist_ok=True)
    http.ranges = False
    with pytest.raises(UserError, match=r"does not serve ranges of bytes: set data\.cache"):
        load(make_slots(http.url))
    for ahead_bytes in (0, 2**26):
        cache = ShardCache(str(tmp_path / f"cache{ahead_bytes}"), 2**30)
        slots = make_slots(http.url, cache)
        http.log.clear()
        assert_same(load(slots, ahead_bytes=ahead_bytes), load(make_slots(shards)))
        # Each shard once, and the first sample of each batch that was started before the answer.
        num_shards = sum(map(len, slots.readers[0].index.counts("train")))
        requests = sum(n for path, n in http.gets().items() if path.endswith(".tar"))
        assert requests <= num_shards + 1 + MAX_STARTED
    config = DataConfig(http.url, cache=str(tmp_path / "cache"))
    assert load_split(open_reader(config, "val"), 32).paths


def test_a_damaged_file_in_the_cache_is_downloaded_again(shards, sequence, tmp_path):
    cache = ShardCache(str(tmp_path), 2**30)
    load(make_slots(shards, cache))
    for path in tmp_path.iterdir():
        if not path.name.startswith(".lock"):
            path.write_bytes(bytes(path.stat().st_size))
    assert_same(load(make_slots(shards, cache)), sequence)


def test_a_cache_smaller_than_the_working_set_requires_reading_ahead(shards, tmp_path):
    index = read_index(shards)
    split_bytes = sum(shard.bytes for shards in index.splits["train"].values() for shard in shards)
    assert working_set_bytes(index, "train") == split_bytes  # fewer shards than a window holds
    largest = max(shard.bytes for shard in index.shards())
    for limit, ahead_mib, waits in [(split_bytes + 1, 0, True), (largest, 1, False)]:
        gib = limit / 2**30
        config = DataConfig(shards, cache=str(tmp_path), cache_gib=gib, ahead_mib=ahead_mib)
        assert open_reader(config, "train").waits_for_cache == waits
    for limit, ahead_mib in [(split_bytes - 1, 0), (largest - 1, 1)]:
        gib = limit / 2**30
        config = DataConfig(shards, cache=str(tmp_path), cache_gib=gib, ahead_mib=ahead_mib)
        with pytest.raises(UserError, match=r"data\.cache_gib: .* cannot hold"):
            open_reader(config, "train")


@pytest.mark.parametrize("cache", ["~/cache", "file://{home}/cache", "{home}/cache"])
def test_a_cache_is_where_its_setting_says(shards, tmp_path, monkeypatch, cache):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    reader = open_reader(DataConfig(shards, cache=cache.format(home=tmp_path)), "train")
    reader.read(Location(0, 0, 0))
    assert reader.cache.files()
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_cache_in_a_store_is_rejected(shards):
    with pytest.raises(UserError, match=r"data\.cache: memory://cache is no local folder"):
        open_reader(DataConfig(shards, cache="memory://cache"), "train")
    assert not storage.exists("memory://cache")


# Faults.


def truncate(server, path):
    path.write_bytes(path.read_bytes()[:700])


def corrupt(server, path):
    data = bytearray(path.read_bytes())
    data[600::2048] = bytes(b ^ 1 for b in data[600::2048])
    path.write_bytes(data)


def remove(server, path):
    path.unlink()


def fail(server, path):
    server.faults[path.name] = ["500"] * 1000


def stall(server, path):
    server.faults[path.name] = ["stall"] * 1000


DAMAGE = {truncate: "it is truncated", corrupt: "a checksum is wrong", remove: "no such file as",
          fail: "500", stall: "no answer for 1.0 s"}  # fmt: skip


@pytest.fixture
def served(shards, http):
    """The shards on an HTTP server, for damage; few retries and a short timeout."""
    shutil.copytree(shards, http.folder, dirs_exist_ok=True)
    storage.configure(StorageConfig(tries=2, wait_seconds=0.0, timeout_seconds=1.0))
    return http


def damaged_shard(server):
    return server.folder / read_index(str(server.folder)).splits["train"]["dog"][1].name


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_shard_stops_the_run_with_one_line(served, damage, workers):
    bad = damaged_shard(served)
    damage(served, bad)
    with pytest.raises(UserError, match=f"{bad.name}: .*") as caught:
        load(make_slots(served.url), workers=workers)
    assert DAMAGE[damage] in str(caught.value)
    permanent = damage in (truncate, corrupt, remove)
    assert ("restore the shard" in str(caught.value)) == permanent
    assert caught.value.exit_code == (USER_ERROR if permanent else OUTSIDE_FAULT)
    assert "--data.on_bad_shard skip" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_of_the_cache_stops_the_run_and_blames_no_shard(
    shards, tmp_path, monkeypatch, workers
):
    """Unreadable samples are replaced, but no sample is at fault here."""
    storage.configure(StorageConfig(tries=1))
    slots = make_slots(shards, ShardCache(str(tmp_path), 10**9), replace_unreadable=True)
    monkeypatch.setattr(os, "fsync", lambda _: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    skipped = SkippedSamples()
    with pytest.raises(UserError, match=r"^the disk of the cache \S+ is full") as caught:
        load(slots, workers=workers, skipped=skipped)
    assert caught.value.exit_code == OUTSIDE_FAULT
    assert not skipped.counts


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_samples_of_a_bad_shard_can_be_replaced(served, sequence, damage):
    bad = damaged_shard(served)
    damage(served, bad)
    skipped = SkippedSamples()
    replaced = load(make_slots(served.url, replace_unreadable=True), skipped=skipped)
    assert list(skipped.counts) == [f"train/{bad.name}"]
    assert DAMAGE[damage] in skipped.counts[f"train/{bad.name}"]["reason"]
    assert skipped.total >= 3
    differing = 0
    for batch, other in zip(replaced, sequence, strict=True):
        assert torch.equal(batch.y, other.y)
        assert torch.equal(batch.y_trg, other.y_trg)
        assert torch.equal(batch.z, other.z)
        for name in ("x", "x_ref", "x_ref2"):
            same = (getattr(batch, name) == getattr(other, name)).flatten(1).all(1)
            differing += int((~same).sum())
    # Substitutes may lie in the damaged shard, too, and are replaced in turn.
    assert 0 < differing <= skipped.total


def test_substitutes_do_not_depend_on_the_world(served):
    """Check that permanent damage gives the same sequence and counts for any world."""
    truncate(served, damaged_shard(served))
    slots = make_slots(str(served.folder), replace_unreadable=True)
    skipped = SkippedSamples()
    expected = load(slots, skipped=skipped)
    for ranks, workers in ((2, 0), (4, 1)):
        assert_same(load_world(slots, range(STEPS), ranks, workers=workers), expected)
    partial_counts = []
    for rank, steps in product((0, 1), (range(3), range(3, STEPS))):
        skipped_by_rank = SkippedSamples()
        load(slots, steps, rank=rank, world_size=2, skipped=skipped_by_rank)
        partial_counts.append(skipped_by_rank.counts)
    merged = SkippedSamples.merge(partial_counts)
    assert {shard: entry["samples"] for shard, entry in merged.counts.items()} == {
        shard: entry["samples"] for shard, entry in skipped.counts.items()
    }


def test_two_references_stay_different_when_one_is_replaced(served):
    truncate(served, damaged_shard(served))
    slots = make_slots(str(served.folder), replace_unreadable=True)
    (images,) = slots.images
    for slot in range(200):
        ref, ref2 = slots.references(slot)
        load_image, load_one = images.load_image, images.load_or_substitute
        _, first = load_one(load_image, ref, "reference", slot, {ref2}, [])
        _, second = load_one(load_image, ref2, "reference2", slot, {first}, [])
        assert first != second


def test_a_completely_unreadable_domain_stops_the_run(served):
    for shard in read_index(str(served.folder)).splits["train"]["dog"]:
        (served.folder / shard.name).unlink()
    with pytest.raises(UserError, match="all substitutes for it failed as well"):
        load(make_slots(str(served.folder), replace_unreadable=True))


def test_transient_faults_do_not_change_the_sequence(served, sequence):
    served.faults[r"\.tar"] = ["500", "none", "reset", "none"] * 5
    assert_same(load(make_slots(served.url)), sequence)
    assert served.faults[r"\.tar"] == []


def test_an_undecodable_image_is_named_in_the_error(shards, monkeypatch):
    def broken(*_, **__):
        raise UserError("truncated")

    monkeypatch.setattr(transforms, "load_augmented", broken)
    with pytest.raises(UserError, match=r"sample train/0.*/0000000. of shard train/.*: truncated"):
        load(make_slots(shards))


def test_load_split_follows_the_order_of_the_shards(shards):
    reader = open_reader(DataConfig(shards), "val")
    val = load_split(reader, 32)
    assert val.domains == ["cat", "dog", "rabbit"]
    assert val.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert [path.split("/")[0] for path in val.paths] == ["cat"] * 3 + ["dog"] * 3 + ["rabbit"] * 3
    wrapped = load_split(reader, 32, first=1, per_domain=3, domains=2)
    assert wrapped.paths[:3] == [val.paths[1], val.paths[2], val.paths[0]]
    assert torch.equal(wrapped.images[wrapped.labels == 1][0], val.images[val.labels == 1][1])


def test_too_few_images_in_a_domain_are_rejected(shards):
    with pytest.raises(UserError, match="domain cat has 3 images in split val"):
        check_split(read_index(shards), "val", 4, shards)
