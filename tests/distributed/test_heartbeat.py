"""The diagnosis of lost and stuck ranks from two readings of all heartbeats."""

import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from stargan_dist.distributed import heartbeat
from stargan_dist.distributed.heartbeat import ChangeTracker, Heartbeat, RankStatus, diagnose

NOW = time.time()
BEFORE = [
    RankStatus(beats=10, progress=7, activity="step 4", unix_seconds=NOW, exiting=False)
    for _ in range(3)
]


def after(*ranks, **changes):
    """Return the second reading: all ranks are alive, and the given ranks have changed fields."""
    statuses = [replace(status, beats=status.beats + 3) for status in BEFORE]
    return [replace(s, **changes) if r in ranks else s for r, s in enumerate(statuses)]


def test_a_rank_whose_heartbeat_stops_is_lost():
    lost, message = diagnose(BEFORE, after(1, beats=10, unix_seconds=NOW - 5))
    assert lost == {1}
    clock = time.strftime("%H:%M:%S", time.localtime(NOW - 5))
    assert re.fullmatch(
        rf"lost rank 1: last heartbeat at {clock} \(\d+ s ago\), in step 4", message
    )


def test_a_rank_that_others_wait_for_is_stuck():
    lost, message = diagnose(BEFORE, after(2, progress=6, activity="step 3"))
    assert lost == {2}
    assert message == (
        "rank 2 is stuck in step 3: it is alive, but has not reached the point where the other "
        "ranks wait"
    )


def test_a_rank_that_announced_its_exit_is_not_reported():
    assert diagnose(BEFORE, after(0, exiting=True)) == ({0}, "")
    # Its process may have ended in the meantime.
    assert diagnose(BEFORE, after(0, exiting=True, beats=10)) == ({0}, "")


def test_every_lost_rank_is_reported():
    lost, message = diagnose(BEFORE, after(0, 2, beats=10))
    assert lost == {0, 2}
    assert message.count("lost rank") == 2


def test_no_rank_is_blamed_when_all_are_alive_and_level():
    lost, message = diagnose(BEFORE, after())
    assert lost == set()
    assert message == "all ranks are alive, but a connection between them failed"


@pytest.mark.parametrize("exiting", [True, False])
def test_a_dead_rank_is_reported_beside_one_that_exits_or_died(exiting):
    statuses = after(1, exiting=exiting, beats=10 if not exiting else 13)
    statuses[2] = replace(statuses[2], beats=10)
    lost, message = diagnose(BEFORE, statuses)
    assert "lost rank 2" in message
    assert lost == {1, 2}


def test_silence_and_lag_are_measured_by_the_local_clock():
    changes = ChangeTracker()
    assert changes.silence_and_lag(BEFORE, now=100.0) == (0, 0)
    # All ranks work for a long time: none lags.
    working = [replace(status, beats=status.beats + 9) for status in BEFORE]
    assert changes.silence_and_lag(working, now=900.0) == (0, 0)
    # Rank 0 makes progress, and waits from then on. Rank 2 has fallen silent.
    ahead = [replace(s, beats=s.beats + 1 + (r < 2)) for r, s in enumerate(working)]
    ahead[0] = replace(ahead[0], progress=8)
    assert changes.silence_and_lag(ahead, now=910.0) == (0, 0)
    later = [replace(s, beats=s.beats + (r < 2)) for r, s in enumerate(ahead)]
    assert changes.silence_and_lag(later, now=940.0) == (30.0, 30.0)
    caught_up = [replace(s, beats=s.beats + 5, progress=8) for s in later]
    assert changes.silence_and_lag(caught_up, now=950.0) == (0, 0)


class LostStore(dist.HashStore):
    """A store whose launcher has gone."""

    def set(self, *_):
        if threading.current_thread() is not threading.main_thread():
            raise dist.DistError("Broken pipe")


@pytest.mark.parametrize(("hosted", "expected"), [("True", [signal.SIGTERM]), ("False", [])])
def test_a_rank_whose_launcher_has_gone_with_the_store_is_asked_to_stop(
    monkeypatch, hosted, expected
):
    """The fallback where the kernel does not do so. Rank 0 may have hosted the store, and ended."""
    received = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", hosted)
    beating = Heartbeat(LostStore(), 0, 1, timeout_seconds=600)
    beating._thread.join(60)
    signal.signal(signal.SIGTERM, previous)
    assert received == expected
    beating.close()


def test_an_exit_is_announced_only_while_the_launcher_lives(monkeypatch):
    beating = Heartbeat(dist.HashStore(), 0, 1, timeout_seconds=600)
    beating.close()

    def gone(*_):
        raise dist.DistError("Broken pipe")

    monkeypatch.setattr(beating, "_store", SimpleNamespace(set=gone))
    beating.announce_exit()


def test_ranks_that_diagnose_are_not_taken_for_lost(monkeypatch):
    """The thread that diagnoses is the one that publishes the heartbeat of its rank."""
    monkeypatch.setattr(heartbeat, "INTERVAL_SECONDS", 0.5)
    monkeypatch.setattr(heartbeat, "DIAGNOSIS_SECONDS", 1.5)
    store = dist.HashStore()
    heartbeats = [Heartbeat(store, rank, 3, timeout_seconds=60) for rank in range(3)]
    for each in heartbeats:
        each.close()
    with ThreadPoolExecutor() as pool:
        messages = list(pool.map(Heartbeat._diagnosis, heartbeats[:2]))
    assert re.fullmatch(r"lost rank 2: last heartbeat at [^;]*", messages[0])
    assert messages[1] == ""
