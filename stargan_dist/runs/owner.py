"""The one writer of a run folder.

Each training that starts takes the next fencing number: it creates `RUN/owners/NNNNNNNN.json`,
which succeeds for one process only. The highest number owns the run. A training checks before it
publishes a checkpoint that no later one has taken the run over; the checkpoint holds the number.

On a local disk a lock comes first: a second training is refused while the first one lives. Object
stores have no locks, so there the later training takes over, and the former one ends at its next
save. Between its last check and its last write a former owner can still publish a checkpoint. That
is harmless: it is a step of the same run with the same configuration, and so has the same contents.
"""

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stargan_dist import storage
from stargan_dist.errors import UserError

FOLDER = "owners"
ATTEMPTS = 20  # several trainings that start at once take one number after the other


@dataclass(frozen=True)
class Owner:
    """A training's claim to a run.

    Attributes:
        run: folder or URL of the run.
        fence: number of the claim, from 1.
        data: contents of its file, which tell it from any other claim.
    """

    run: str
    fence: int
    data: bytes

    def check(self) -> None:
        """Check that this training still owns the run.

        Raises:
            UserError: another training has taken it over.
            OSError: the storage fails.
        """
        newest = max(_fences(self.run), default=0)
        claim = storage.read_bytes(_url(self.run, newest)) if newest else b"the folder is gone"
        if claim != self.data:
            raise UserError(
                f"{self.run} was taken over by another training ({_describe(claim)}), so this one "
                "saves nothing more and ends; give each training a --run of its own"
            )


@contextmanager
def own(run: str, message: str) -> Iterator[Owner]:
    """Own a run until the end of the context.

    Args:
        message: the error if another process of this machine is training the run.

    Raises:
        UserError: another process holds the lock, or the claim fails.
    """
    with storage.exclusive_lock(run, message):
        yield _claim(run)


def _claim(run: str) -> Owner:
    for _ in range(ATTEMPTS):
        fence = max(_fences(run), default=0) + 1
        owner = Owner(run, fence, _claim_data(fence))
        if storage.create_file(_url(run, fence), owner.data):
            return owner
    raise UserError(f"cannot claim {run}: {ATTEMPTS} other trainings of it have just started")


def _claim_data(fence: int) -> bytes:
    fields = {
        "fence": fence,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": uuid.uuid4().hex,
    }
    return (json.dumps(fields) + "\n").encode()


def _fences(run: str) -> list[int]:
    names = storage.list_names(storage.join(run, FOLDER))
    return [int(name[:8]) for name in names if re.fullmatch(r"\d{8}\.json", name)]


def _url(run: str, fence: int) -> str:
    return storage.join(run, FOLDER, f"{fence:08d}.json")


def _describe(claim: bytes) -> str:
    return " ".join(claim.decode(errors="replace").split())[:200]
