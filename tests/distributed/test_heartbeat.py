"""Who is told to be lost, from two readings of all ranks' signs."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch.distributed as dist

from stargan_dist.distributed import heartbeat
from stargan_dist.distributed.heartbeat import Heartbeat, LastChanges, RankStatus, verdict

NOW = time.time()
THERE = [RankStatus(beats=10, marks=7, doing="step 4", seconds=NOW, left=False) for _ in range(3)]


def later(*ranks, **changes):
    """The second reading: all live on, and some differ."""
    signs = [replace(sign, beats=sign.beats + 3) for sign in THERE]
    return [replace(s, **changes) if r in ranks else s for r, s in enumerate(signs)]


def test_a_rank_whose_signs_stop_is_lost():
    lost, told = verdict(THERE, later(1, beats=10, seconds=NOW - 5))
    assert lost == {1}
    clock = time.strftime("%H:%M:%S", time.localtime(NOW - 5))
    assert re.fullmatch(rf"lost rank 1: last heard of at {clock} \(\d+ s ago\), in step 4", told)


def test_a_rank_that_others_wait_for_is_stuck():
    lost, told = verdict(THERE, later(2, marks=6, doing="step 3"))
    assert lost == {2}
    assert told.startswith("rank 2 is stuck: it lives, but has not come to where the others wait")
    assert told.endswith("step 3")


def test_a_rank_that_has_told_why_it_went_is_not_told_again():
    assert verdict(THERE, later(0, left=True)) == ({0}, "")
    # Its process may have ended meanwhile.
    assert verdict(THERE, later(0, left=True, beats=10)) == ({0}, "")


def test_of_several_each_is_told():
    lost, told = verdict(THERE, later(0, 2, beats=10))
    assert lost == {0, 2}
    assert told.count("lost rank") == 2


def test_nobody_is_accused_without_a_sign():
    lost, told = verdict(THERE, later())
    assert lost == set()
    assert "connection failed" in told


@pytest.mark.parametrize("left", [True, False])
def test_one_who_left_and_one_who_died(left):
    after = later(1, left=left, beats=10 if not left else 13)
    after[2] = replace(after[2], beats=10)
    lost, told = verdict(THERE, after)
    assert "lost rank 2" in told
    assert lost == {1, 2}


def test_silence_and_lateness_are_measured_by_this_machines_clock():
    seen = LastChanges()
    assert seen.since(THERE, now=100.0) == (0, 0)
    # All at work for long: nobody is late.
    at_work = [replace(sign, beats=sign.beats + 9) for sign in THERE]
    assert seen.since(at_work, now=900.0) == (0, 0)
    # Rank 0 has come further, and waits from then on. Rank 2 has fallen silent.
    ahead = [replace(s, beats=s.beats + 1 + (r < 2)) for r, s in enumerate(at_work)]
    ahead[0] = replace(ahead[0], marks=8)
    assert seen.since(ahead, now=910.0) == (0, 0)
    later = [replace(s, beats=s.beats + (r < 2)) for r, s in enumerate(ahead)]
    assert seen.since(later, now=940.0) == (30.0, 30.0)
    caught_up = [replace(s, beats=s.beats + 5, marks=8) for s in later]
    assert seen.since(caught_up, now=950.0) == (0, 0)


def test_those_who_find_out_do_not_count_as_lost(monkeypatch):
    """The thread that finds out is the one that says that its rank lives."""
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 0.5)
    monkeypatch.setattr(heartbeat, "PATIENCE_SECONDS", 1.5)
    store = dist.HashStore()
    pulses = [Heartbeat(store, rank, 3, timeout_seconds=60) for rank in range(3)]
    for each in pulses:
        each.close()
    with ThreadPoolExecutor() as pool:
        told = list(pool.map(Heartbeat._diagnosis, pulses[:2]))
    assert re.fullmatch(r"lost rank 2: last heard of at [^;]*", told[0])
    assert told[1] == ""
