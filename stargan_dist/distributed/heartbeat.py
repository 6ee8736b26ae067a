"""Detect dead and stuck ranks.

Every rank publishes a heartbeat with its progress once a second, in the key-value store that the
launcher hosts. When a collective fails, the remaining ranks compare two readings of all heartbeats
and one of them reports which rank died or is stuck. Without this, every rank could only report that
"a peer" has gone. With NCCL the failure may not reach the host, which keeps waiting. Therefore a
thread of each rank watches the heartbeats, too.

If the launcher itself has gone, and the store with it, the ranks can still save: collectives do not
need the store. There are no heartbeats then, and a hanging collective ends at its time limit.
"""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from stargan_dist.errors import RankError, print_error

INTERVAL_SECONDS = 1.0
DIAGNOSIS_SECONDS = 3 * INTERVAL_SECONDS  # between two readings that show which heartbeats stopped
SILENCE_SECONDS = 20.0  # a rank without a heartbeat for this long is lost, with or without an error
GRACE_SECONDS = 30.0  # for a rank to exit by itself after the cause has been reported
WORLD_ENDED = "stargan_dist/heartbeat/ended"  # key in the store: the cause has been reported


@dataclass(frozen=True)
class RankStatus:
    """The last heartbeat of a rank.

    Attributes:
        beats: number of heartbeats; it grows as long as the process lives.
        progress: number of progress marks. A rank that others wait for has the fewest.
        activity: the current step, for people.
        unix_seconds: time of the heartbeat by the clock of that rank's machine.
        exiting: the rank has reported the reason itself and is about to exit.
    """

    beats: int
    progress: int
    activity: str
    unix_seconds: float
    exiting: bool


class Heartbeat:
    """Publish the heartbeats of this rank and watch those of all ranks.

    Args:
        store: the key-value store of the default process group.
        rank: this rank.
        world_size: number of ranks.
        timeout_seconds: time limit of a collective. A rank that others wait for is stuck somewhat
            later, after SILENCE_SECONDS more.
    """

    def __init__(self, store: Any, rank: int, world_size: int, timeout_seconds: float) -> None:
        self.rank, self.world_size = rank, world_size
        # Longer than the time limit of a collective: a failure that reaches the host comes first.
        self.timeout_seconds = timeout_seconds + SILENCE_SECONDS
        self._store = store
        self._beats, self._progress, self._activity, self._exiting = 0, 0, "startup", False
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._reported = False
        self._publish()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def mark_progress(self, activity: str = "") -> None:
        """Count one more progress mark of this rank. A given `activity` replaces the last one."""
        self._progress += 1
        self._activity = activity or self._activity

    def announce_exit(self) -> None:
        """Publish that this rank exits and reports the reason itself. Other ranks need not."""
        self._exiting = True
        with suppress(dist.DistError):  # the launcher has gone
            self._publish()
            self._store.set(WORLD_ENDED, "")

    def close(self) -> None:
        """Stop the thread."""
        self._stop.set()
        self._thread.join()

    def _publish(self) -> None:
        self._beats += 1
        fields = [self._beats, self._progress, self._activity, time.time(), self._exiting]
        self._store.set(self._key(self.rank), json.dumps(fields))

    @staticmethod
    def _key(rank: int) -> str:
        return f"stargan_dist/heartbeat/{rank}"

    def _watch(self) -> None:
        """Publish heartbeats until `close`, and report a lost or stuck rank.

        If the world has ended and this process hangs in a wait, end the process.
        """
        ended_seconds = 0.0
        changes = ChangeTracker()
        try:
            while not self._stop.wait(INTERVAL_SECONDS):
                self._publish()
                ended_seconds += INTERVAL_SECONDS * self._store.check([WORLD_ENDED])
                if ended_seconds > GRACE_SECONDS:
                    os._exit(1)
                if not ended_seconds and self._beats % 5 == 0 and self._rank_is_lost(changes):
                    self.report_cause()
        except dist.DistError:
            if not self._reported and not ended_seconds:
                _stop_without_launcher()

    def _rank_is_lost(self, changes: "ChangeTracker") -> bool:
        silence, lag = changes.silence_and_lag(self.read_statuses(), time.monotonic())
        return silence > SILENCE_SECONDS or lag > self.timeout_seconds

    def read_statuses(self) -> list[RankStatus]:
        """Return the last heartbeat of every rank, by rank."""
        keys = [self._key(rank) for rank in range(self.world_size)]
        return [RankStatus(*json.loads(fields)) for fields in self._store.multi_get(keys)]

    def report_cause(self) -> None:
        """Report, once, why the world ends. One of the remaining ranks prints the reason.

        All ranks exit soon afterwards.
        """
        with self._lock:
            if not self._reported:
                self._reported = True
                print_error(RankError(self._diagnosis()))

    def _diagnosis(self) -> str:
        """Return the message that this rank has to print; "" if another rank prints it."""
        try:
            before = self.read_statuses()
            for _ in range(round(DIAGNOSIS_SECONDS / INTERVAL_SECONDS)):
                time.sleep(INTERVAL_SECONDS)
                self._publish()  # this may be the thread that otherwise publishes
            after = self.read_statuses()
            self._store.set(WORLD_ENDED, "")
        except dist.DistError:
            return "lost the machine of the launcher (MASTER_ADDR), which hosts all heartbeats"
        lost, message = diagnose(before, after)
        reporter = min((r for r in range(self.world_size) if r not in lost), default=self.rank)
        return message if self.rank == reporter else ""


def _stop_without_launcher() -> None:
    """Ask this process to save and stop, as its launcher has gone, which hosted the store.

    Usually the launcher's death has already done so (launch/launcher.py). Not for ranks on other
    machines and systems other than Linux. Commands that handle no signals have nothing to save.
    """
    handled = callable(signal.getsignal(signal.SIGTERM))
    if handled and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        os.kill(os.getpid(), signal.SIGTERM)


class ChangeTracker:
    """Track how long the values of each rank have not changed, by the clock of this machine."""

    def __init__(self) -> None:
        self._values: dict[tuple[int, str], tuple[Any, float]] = {}

    def _unchanged_seconds(self, rank: int, name: str, value: Any, now: float) -> float:
        """Return for how many seconds a rank has had this value."""
        last, since = self._values.get((rank, name), (None, now))
        if last != value:
            since = now
        self._values[rank, name] = value, since
        return now - since

    def silence_and_lag(self, statuses: list[RankStatus], now: float) -> tuple[float, float]:
        """Return the longest silence of a rank and the longest lag, in seconds.

        A rank lags while it is behind another rank and makes no progress. Ranks with equal
        progress are at work, however long it takes.
        """
        furthest = max(status.progress for status in statuses)
        silence = lag = 0.0
        for rank, status in enumerate(statuses):
            silence = max(silence, self._unchanged_seconds(rank, "beats", status.beats, now))
            behind = status.progress < furthest
            position = (status.progress, behind)
            unchanged = self._unchanged_seconds(rank, "position", position, now)
            lag = max(lag, unchanged if behind else 0.0)
        return silence, lag


def diagnose(before: list[RankStatus], after: list[RankStatus]) -> tuple[set[int], str]:
    """Return the lost ranks and a message, from two readings of all heartbeats.

    The message is empty if a rank that is exiting reports the reason itself.
    """
    silent = {
        rank
        for rank, status in enumerate(after)
        if status.beats == before[rank].beats and not status.exiting
    }
    exiting = {rank for rank, status in enumerate(after) if status.exiting}
    if exiting and not silent:
        return exiting, ""
    if silent:
        lost = (f"lost rank {rank}: {_last_heartbeat(after[rank])}" for rank in sorted(silent))
        return exiting | silent, "; ".join(lost)
    fewest = min(status.progress for status in after)
    stuck = {rank for rank, status in enumerate(after) if status.progress == fewest}
    if len(stuck) == len(after):
        return set(), "all ranks are alive, but a connection between them failed"
    return stuck, "; ".join(_stuck(rank, after[rank]) for rank in sorted(stuck))


def _last_heartbeat(status: RankStatus) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(status.unix_seconds))
    age = time.time() - status.unix_seconds
    return f"last heartbeat at {clock} ({age:.0f} s ago), in {status.activity}"


def _stuck(rank: int, status: RankStatus) -> str:
    return (
        f"rank {rank} is stuck in {status.activity}: it is alive, but has not reached the point "
        "where the other ranks wait"
    )
