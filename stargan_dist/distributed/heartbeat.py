"""Who is still there: each rank says so every second, in the store that the launcher keeps.

When a collective fails, the ranks that are left read what the others last said, and so one of
them can tell which rank died or is stuck, instead of all of them that "a peer" has gone. Where
the failure does not reach them (NCCL lets the host wait on), a thread of each rank finds out.
"""

import json
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from stargan_dist.errors import RankError, tell

INTERVAL_SECONDS = 1.0
PATIENCE_SECONDS = 3 * INTERVAL_SECONDS  # to see whose signs have stopped
SILENCE_SECONDS = 20.0  # a rank that says nothing for so long is lost, whatever the others notice
GRACE_SECONDS = 30.0  # for a rank to leave by itself, once it is told why the world ends
ENDED = "stargan_dist/pulse/ended"


@dataclass(frozen=True)
class RankStatus:
    """What a rank last said.

    Attributes:
        beats: grows as long as the process lives.
        marks: how far it came: a rank that the others wait for has the fewest.
        doing: the step, for people.
        seconds: when, as Unix time of that rank's machine.
        left: it went for a reason that it has told.
    """

    beats: int
    marks: int
    doing: str
    seconds: float
    left: bool


class Heartbeat:
    """This rank's signs of life, and a reading of the others'.

    Args:
        timeout_seconds: a rank that others wait for so long, and somewhat longer, is stuck.
    """

    def __init__(self, store: Any, rank: int, world_size: int, timeout_seconds: float) -> None:
        self.rank, self.world_size = rank, world_size
        # Longer than a collective waits: where its failure reaches the host, the host tells.
        self.timeout_seconds = timeout_seconds + SILENCE_SECONDS
        self._store = store
        self._beats, self._marks, self._doing, self._left = 0, 0, "the start", False
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._told = False
        self._say()
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
        self._thread.start()

    def mark_progress(self, doing: str = "") -> None:
        """This rank has come further; `doing` says to what, from now on."""
        self._marks += 1
        self._doing = doing or self._doing

    def leave(self) -> None:
        """This rank ends, and has told why: the others need not."""
        self._left = True
        self._say()
        self._store.set(ENDED, "")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _say(self) -> None:
        self._beats += 1
        row = [self._beats, self._marks, self._doing, time.time(), self._left]
        self._store.set(self._key(self.rank), json.dumps(row))

    @staticmethod
    def _key(rank: int) -> str:
        return f"stargan_dist/pulse/{rank}"

    def _watch(self) -> None:
        """Live on until the end. End this process if the world has ended and it hangs in a wait."""
        ended_seconds = 0.0
        seen = LastChanges()
        try:
            while not self._stop.wait(INTERVAL_SECONDS):
                self._say()
                ended_seconds += INTERVAL_SECONDS * self._store.check([ENDED])
                if ended_seconds > GRACE_SECONDS:
                    os._exit(1)
                if not ended_seconds and self._beats % 5 == 0 and self._hopeless(seen):
                    self.report_cause()
        except dist.DistError:  # the launcher that kept the store has gone
            pass

    def _hopeless(self, seen: "LastChanges") -> bool:
        silent, behind = seen.since(self.signs(), time.monotonic())
        return silent > SILENCE_SECONDS or behind > self.timeout_seconds

    def signs(self) -> list[RankStatus]:
        keys = [self._key(rank) for rank in range(self.world_size)]
        return [RankStatus(*json.loads(row)) for row in self._store.multi_get(keys)]

    def report_cause(self) -> None:
        """Have one of the ranks that are left tell why the world ends, once, and all end soon."""
        with self._lock:
            if not self._told:
                self._told = True
                tell(RankError(self._diagnosis()))

    def _diagnosis(self) -> str:
        try:
            before = self.signs()
            for _ in range(round(PATIENCE_SECONDS / INTERVAL_SECONDS)):
                time.sleep(INTERVAL_SECONDS)
                self._say()  # the thread that says so otherwise may be this one
            after = self.signs()
            self._store.set(ENDED, "")
        except dist.DistError:
            return "lost the machine of the launcher, which knows all ranks (MASTER_ADDR)"
        lost, told = verdict(before, after)
        teller = min((r for r in range(self.world_size) if r not in lost), default=self.rank)
        return told if self.rank == teller else ""


class LastChanges:
    """Since when, on this machine's clock, each rank says the same."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], tuple[Any, float]] = {}

    def _unchanged(self, rank: int, what: str, value: Any, now: float) -> float:
        """Seconds that a rank has had this value."""
        kept = self._kept.get((rank, what))
        if kept is None or kept[0] != value:
            kept = self._kept[rank, what] = value, now
        return now - kept[1]

    def since(self, signs: list[RankStatus], now: float) -> tuple[float, float]:
        """The longest silence of a rank, and the longest that one is behind others and comes no
        further, in seconds. Ranks that are level are at work, however long."""
        furthest = max(sign.marks for sign in signs)
        silent = behind = 0.0
        for rank, sign in enumerate(signs):
            silent = max(silent, self._unchanged(rank, "beats", sign.beats, now))
            late = sign.marks < furthest
            waited = self._unchanged(rank, "marks", (sign.marks, late), now)
            behind = max(behind, waited if late else 0.0)
        return silent, behind


def verdict(before: list[RankStatus], after: list[RankStatus]) -> tuple[set[int], str]:
    """Who is lost, by two readings of all ranks' signs, and what is to be told ("": nothing)."""
    silent = {r for r, sign in enumerate(after) if sign.beats == before[r].beats and not sign.left}
    left = {r for r, sign in enumerate(after) if sign.left}
    if left and not silent:
        return left, ""
    if silent:
        return left | silent, "; ".join(f"lost rank {r}: {_last(after[r])}" for r in sorted(silent))
    fewest = min(sign.marks for sign in after)
    stuck = {r for r, sign in enumerate(after) if sign.marks == fewest}
    if len(stuck) == len(after):
        return set(), "all ranks are there, but their connection failed"
    told = (f"rank {r} is stuck: it lives, but has not come to where the others wait in "
            f"{after[r].doing}" for r in sorted(stuck))  # fmt: skip
    return stuck, "; ".join(told)


def _last(sign: RankStatus) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(sign.seconds))
    return f"last heard of at {when} ({time.time() - sign.seconds:.0f} s ago), in {sign.doing}"
