"""The order of samples: completeness, independence and randomness."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from stargan_dist.data.loading import RankSampler
from stargan_dist.data.order import WINDOW_SHARDS, Location, Order, shards_of_pass

COUNTS = ((5, 3, 1), (4,), tuple([2] * (WINDOW_SHARDS + 3)))
SIZES = [sum(counts) for counts in COUNTS]
ORDER = Order(COUNTS, seed=7)


def all_locations(domain):
    return [Location(domain, s, i) for s, n in enumerate(COUNTS[domain]) for i in range(n)]


def streams(slots):
    """Return, for each stream and domain, the visited locations in order."""
    visited = {(name, d): [] for name in ("source", "ref", "ref2") for d in range(3)}
    for slot in range(slots):
        ref, ref2 = ORDER.references(slot)
        locations = {"source": ORDER.source(slot), "ref": ref, "ref2": ref2}
        for name, location in locations.items():
            visited[name, location.domain].append(location)
    return visited


def test_every_block_of_slots_visits_every_domain_once():
    for block in range(50):
        slots = range(3 * block, 3 * block + 3)
        assert {ORDER.source(slot).domain for slot in slots} == {0, 1, 2}
        assert {ORDER.references(slot)[0].domain for slot in slots} == {0, 1, 2}


def test_a_pass_visits_every_image_exactly_once():
    for (_, domain), visited in streams(3 * 3 * max(SIZES)).items():
        size = SIZES[domain]
        for begin in range(0, 3 * size, size):
            assert sorted(visited[begin : begin + size]) == all_locations(domain)


def test_passes_differ():
    visited = streams(3 * 2 * max(SIZES))["source", 2]
    size = SIZES[2]
    assert visited[:size] != visited[size : 2 * size]


def test_references_are_two_different_images_of_one_domain():
    for slot in range(1000):
        ref, ref2 = ORDER.references(slot)
        assert ref.domain == ref2.domain
        assert ref != ref2


def test_two_images_are_enough_for_references():
    order = Order(((1, 1), (2,)), seed=0)
    assert all(len(set(order.references(slot))) == 2 for slot in range(50))


def test_target_domains_are_independent_of_source_domains():
    pairs = Counter(
        (ORDER.source(slot).domain, ORDER.references(slot)[0].domain) for slot in range(9000)
    )
    expected = 1000
    chi2 = sum((n - expected) ** 2 / expected for n in pairs.values())
    assert len(pairs) == 9
    assert chi2 < 26.1  # 8 degrees of freedom (fewer: the margins are fixed), p = 0.001


def test_first_image_of_a_pass_is_uniform_within_the_first_window():
    """Test 200 seeds: with 9 images in one window, each is first about 22 times."""
    first = Counter()
    for seed in range(200):
        order = Order(COUNTS, seed)
        slot = next(s for s in range(3) if order.source(s).domain == 0)
        first[order.source(slot)] += 1
    chi2 = sum((first[image] - 200 / 9) ** 2 / (200 / 9) for image in all_locations(0))
    assert chi2 < 26.1  # 8 degrees of freedom, p = 0.001


def test_equal_seeds_give_equal_orders_and_other_seeds_do_not():
    def sources(seed):
        return [Order(COUNTS, seed).source(slot) for slot in range(60)]

    assert sources(1) == sources(1)
    assert sources(1) != sources(2)


def test_a_distant_slot_does_not_require_the_slots_before_it():
    location = Order(((1000,) * 1000, (10,)), seed=0).source(10**15)
    assert 0 <= location.sample < 1000


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_divide_each_global_batch(world_size):
    whole = list(RankSampler(range(3, 6), 8, rank=0, world_size=1))
    ranks = [list(RankSampler(range(3, 6), 8, rank, world_size)) for rank in range(world_size)]
    assert [[*chain(*step)] for step in zip(*ranks, strict=True)] == whole
    assert whole[0] == list(np.arange(24, 32))


# Randomness.

MANY = Order(((20,) * 64,), seed=5)
PASS = 64 * 20


def visited(epoch):
    """Return the images of a pass, numbered by their position in the shards."""
    return np.array([
        location.shard * 20 + location.sample
        for location in (MANY.source(slot) for slot in range(epoch * PASS, (epoch + 1) * PASS))
    ])  # fmt: skip


def test_the_order_is_uncorrelated_with_the_position_and_the_previous_pass():
    """Check that both rank correlations are within 4 / √n of 0."""
    first, second = np.argsort(visited(0)), np.argsort(visited(1))
    bound = 4 / np.sqrt(PASS)
    assert abs(np.corrcoef(first, np.arange(PASS))[0, 1]) < bound
    assert abs(np.corrcoef(first, second)[0, 1]) < bound


def test_images_of_a_shard_are_spread_over_their_window():
    """Check that neighbours in the order share a shard no more often than by chance."""
    shards = visited(0) // 20
    same_shard = int((shards[1:] == shards[:-1]).sum())
    expected = PASS * 19 / (WINDOW_SHARDS * 20 - 1)
    assert abs(same_shard - expected) < 4 * np.sqrt(expected)


def test_a_pass_reads_from_one_window_of_shards_at_a_time():
    shards = visited(0) // 20
    for begin in range(0, PASS, WINDOW_SHARDS * 20):
        assert len(set(shards[begin : begin + WINDOW_SHARDS * 20])) == WINDOW_SHARDS


def test_substitutes_are_different_images_of_the_domain():
    drawn = ORDER.substitutes(2, 10, "source", 5)
    assert len(set(drawn)) == 10
    assert set(drawn) <= set(all_locations(2))
    assert drawn == ORDER.substitutes(2, 10, "source", 5) != ORDER.substitutes(2, 10, "source", 6)
    assert sorted(ORDER.substitutes(1, 10, "source", 5)) == all_locations(1)


def window_at(stream, domain, position, ahead=0):
    """Return the shards of the window that a stream reads from."""
    epoch, i = divmod(position, SIZES[domain])
    shards, starts = shards_of_pass(ORDER, stream, domain, epoch)
    i = (i + ahead) % SIZES[domain]
    windows = range(0, len(shards), WINDOW_SHARDS)
    return next(shards[w : w + WINDOW_SHARDS] for w in reversed(windows) if starts[w] <= i)


@pytest.mark.parametrize("position", [0, 8, 13, 27, 33, 52, 74, 131])
@pytest.mark.parametrize("domain", range(3))
def test_the_next_use_of_a_shard_is_the_first_window_that_has_it(position, domain):
    expected = {}
    for later in range(position, position + 2 * SIZES[domain]):
        for stream, ahead in [("source", 0), ("reference", 0), ("reference", SIZES[domain] // 2)]:
            for shard in window_at(stream, domain, later, ahead):
                expected.setdefault(shard, later)
    uses = ORDER.next_uses(3 * position + 1, with_references=True)[domain]
    assert {shard: use // 3 for shard, use in enumerate(uses)} == expected


def test_without_references_the_sources_alone_determine_the_next_use():
    (_, _, uses) = ORDER.next_uses(0, with_references=False)
    window = {
        ORDER.source(s).shard for s in range(3 * 2 * WINDOW_SHARDS) if ORDER.source(s).domain == 2
    }
    assert {*np.flatnonzero(uses == 0)} == window
    assert set(uses[uses > 0]) == {3 * 2 * WINDOW_SHARDS}
