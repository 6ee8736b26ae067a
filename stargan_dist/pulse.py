"""Who is still there: each rank says so every second, in the store that the launcher keeps.

When a collective fails, the ranks that are left read what the others last said, and so one of
them can tell which rank died or is stuck, instead of all of them that "a peer" has gone.
"""

import json
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

INTERVAL_SECONDS = 1.0
GRACE_SECONDS = 10.0  # for a rank to leave by itself, once another has told why the world ends
ENDED = "stargan_dist/pulse/ended"


@dataclass(frozen=True)
class Sign:
    """What a rank last said.

    Attributes:
        beats: grows as long as the process lives.
        marks: collectives begun: a rank that the others wait for has the fewest.
        doing: the step, for people.
        seconds: when, as Unix time of that rank's machine.
        left: it went for a reason that it has told.
    """

    beats: int
    marks: int
    doing: str
    seconds: float
    left: bool


class Pulse:
    """This rank's signs of life, and a reading of the others'."""

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self._store = store
        self._beats, self._marks, self._doing, self._left = 0, 0, "the start", False
        self._stop = threading.Event()
        self._say()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def mark(self, doing: str = "") -> None:
        """This rank begins a collective; `doing` says of what, from now on."""
        self._marks += 1
        self._doing = doing or self._doing

    def leave(self) -> None:
        """This rank ends, and has told why: the others need not."""
        self._left = True
        self._say()

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

    def _beat(self) -> None:
        """Until the end; or end this process, if the world has ended and it hangs in a wait."""
        ended_seconds = 0.0
        try:
            while not self._stop.wait(INTERVAL_SECONDS):
                self._say()
                ended_seconds += INTERVAL_SECONDS * self._store.check([ENDED])
                if ended_seconds > GRACE_SECONDS:
                    os._exit(1)
        except dist.DistError:  # the launcher that kept the store has gone
            pass

    def signs(self) -> list[Sign]:
        return [Sign(*json.loads(self._store.get(self._key(r)))) for r in range(self.world_size)]

    def diagnose(self, patience_seconds: float = 3 * INTERVAL_SECONDS) -> str:
        """Why a collective failed, for one of the ranks that are left to tell; "" for the others.

        Waits to see whose signs stop, and has the ranks that hang end soon.
        """
        try:
            before = self.signs()
            time.sleep(patience_seconds)
            after = self.signs()
            self._store.set(ENDED, "")
        except dist.DistError:
            return "lost the machine of the launcher, which knows all ranks (MASTER_ADDR)"
        lost, told = verdict(before, after)
        teller = min((r for r in range(self.world_size) if r not in lost), default=self.rank)
        return told if self.rank == teller else ""


def verdict(before: list[Sign], after: list[Sign]) -> tuple[set[int], str]:
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


def _last(sign: Sign) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(sign.seconds))
    return f"last heard of at {when} ({time.time() - sign.seconds:.0f} s ago), in {sign.doing}"
