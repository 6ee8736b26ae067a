"""What is fetched ahead changes neither samples nor faults, and stays within its bounds."""

import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.data.loading import TrafficMeter
from stargan_dist.data.read_ahead import MAX_BATCHES, MAX_STARTED, ReadAhead
from stargan_dist.data.skipped import SkippedSamples
from stargan_dist.errors import UserError
from tests.conftest import ROOT
from tests.data.test_stream import (
    BATCH_SIZE,
    DAMAGE,
    STEPS,
    assert_same,
    damaged_shard,
    load,
    load_world,
    make_slots,
    stall,
)

AHEAD = {"ahead_bytes": 2**26}


@pytest.mark.parametrize(("ranks", "workers"), product([1, 2], [0, 2]))
def test_any_world_reads_the_same_sequence_before_and_after_a_resume(far, sequence, ranks, workers):
    slots = make_slots(far.url)
    assert_same(load_world(slots, range(2), ranks, workers=workers, **AHEAD), sequence[:2])
    assert_same(load_world(slots, range(2, STEPS), ranks, workers=workers, **AHEAD), sequence[2:])


def test_a_filesystem_without_coroutines_is_read_ahead(shards, sequence):
    for path in Path(shards).rglob("*.*"):
        storage.write_bytes(f"memory://ahead/{path.relative_to(shards)}", path.read_bytes())
    slots = make_slots("memory://ahead")
    assert_same(load(slots, **AHEAD), sequence)
    last_batch = range((STEPS - 1) * BATCH_SIZE, STEPS * BATCH_SIZE)
    assert len(slots.readers[0].fetched) == len(set(slots.samples(last_batch)))
    storage.remove_folder("memory://ahead")


def test_labels_of_other_slots_are_read_ahead(shards, far):
    options = {"reference_turns": (False,), "targets": "permuted"}
    expected = load(make_slots(shards, **options))
    assert_same(load(make_slots(far.url, **options), **AHEAD), expected)


def test_many_samples_are_under_way_at_a_time_and_each_is_requested_once(far, sequence):
    storage.configure(StorageConfig())  # a busy machine must not make a request time out
    far.delay_seconds = 0.05
    slots = make_slots(far.url)
    far.log.clear()
    far.peak = 0
    assert_same(load(slots, **AHEAD), sequence)
    assert far.peak >= 10
    tars = sum(n for path, n in far.gets().items() if path.endswith(".tar"))
    batches = (range(i, i + BATCH_SIZE) for i in range(0, STEPS * BATCH_SIZE, BATCH_SIZE))
    assert tars == sum(len(set(slots.samples(batch))) for batch in batches)


@pytest.mark.parametrize("ahead_bytes", [0, 2**26])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_traffic_of_the_loader_is_measured(far, workers, ahead_bytes):
    slots = make_slots(far.url)
    storage.take_traffic()
    far.log.clear()
    meter = TrafficMeter()
    load(slots, workers=workers, meter=meter, ahead_bytes=ahead_bytes)
    sizes = [size for _, _, _, size in far.log]
    assert (meter.images, meter.requests, meter.bytes) == (
        3 * STEPS * BATCH_SIZE, len(sizes), sum(sizes)
    )  # fmt: skip
    assert (meter.ahead_bytes > 0) == (ahead_bytes > 0)
    metrics = meter.take(seconds=2.0)
    assert metrics["data/requests_per_image"] == len(sizes) / (3 * STEPS * BATCH_SIZE)
    assert metrics["data/mib_per_second"] == sum(sizes) / 2**21
    assert meter.requests == 0


def outcome(url, **options):
    """Return the batches, the replaced samples and the error of a training on damaged shards."""
    skipped = SkippedSamples()
    try:
        batches = load(make_slots(url, replace_unreadable=True), skipped=skipped, **options)
        with pytest.raises(UserError) as caught:
            load(make_slots(url), **options)
    finally:
        storage.configure(StorageConfig())
    return batches, skipped.counts, str(caught.value)


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d is not stall], ids=lambda f: f.__name__)
def test_faults_are_those_without_reading_ahead(far, damage):
    damage(far, damaged_shard(far))
    batches, counts, error = outcome(far.url)
    storage.configure(StorageConfig(tries=2, wait_seconds=0.0, timeout_seconds=1.0))
    batches_ahead, counts_ahead, error_ahead = outcome(far.url, **AHEAD)
    assert_same(batches_ahead, batches)
    assert (counts_ahead, error_ahead) == (counts, error)


@pytest.mark.parametrize("fault", ["429", "503", "reset", "stall"])
def test_requests_that_fail_for_a_while_are_retried(far, sequence, fault):
    far.faults["tar"] = [fault] * 3
    far.faults["json"] = [fault]
    slots = make_slots(far.url)
    storage.configure(StorageConfig(tries=5, wait_seconds=0.0, timeout_seconds=1.0))
    assert_same(load(slots, **AHEAD), sequence)


def test_a_server_without_ranges_is_recognised_by_few_requests(far):
    far.ranges = False
    far.log.clear()
    with pytest.raises(UserError, match=r"does not serve ranges of bytes: set data\.cache"):
        load(make_slots(far.url), **AHEAD)
    assert sum(n for path, n in far.gets().items() if path.endswith(".tar")) <= 2 + MAX_STARTED


@pytest.mark.parametrize("limit", [1, 2**40])
def test_few_batches_are_started_at_a_time_and_within_the_limit(far, limit):
    slots = make_slots(far.url)
    ahead = ReadAhead(slots, 40 * BATCH_SIZE, limit)
    for step in range(12):
        before = len(ahead._started) - (step > 0)
        ahead.__getitems__([step * BATCH_SIZE + i for i in range(BATCH_SIZE)])
        assert len(ahead._started) == min(before + MAX_STARTED, MAX_BATCHES if limit > 1 else 1)
    assert pickle.loads(pickle.dumps(ahead))._started == {}
    last = 39 * BATCH_SIZE
    ahead.__getitems__([last, last + 1])  # another place: what was under way is cancelled
    assert not ahead._started


END_EARLY = """
import os, sys
from stargan_dist.data.loading import iterate_batches, training_loader
from stargan_dist.data.skipped import SkippedSamples
from tests.data.test_stream import make_slots

loader = training_loader(
    make_slots(sys.argv[1]), range(6), rank=0, world_size=1, workers=int(sys.argv[2]),
    ahead_bytes=2**26,
)
batches = iterate_batches(loader, SkippedSamples())
next(batches)
batches.close()
"""


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_training_that_stops_leaves_requests_behind_silently(far, workers):
    far.delay_seconds = 0.2
    command = [sys.executable, "-c", END_EARLY, far.url, str(workers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
