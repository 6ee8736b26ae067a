"""The processes of a run: who they are, and what they agree on."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from stargan_dist.distributed.heartbeat import Heartbeat
from stargan_dist.errors import LostError, RankError, UserError, WorldError

T = TypeVar("T")

# What tells gloo's errors from others: the file that raised them; and, without one, all that a
# collective says when another, which waited beside it, was the first to run out of time.
GLOO_SIGNS = ("gloo", "Application timeout caused pair closure")

REMEDY = (
    "start one world of N processes with "
    "`accelerate launch --multi_gpu --num_processes N -m stargan_dist.train …`, "
    "or one process with "
    "`python -m stargan_dist.train …`; on Slurm: `sbatch slurm/train_8gpu.sh …`"
)


def launched_world_size() -> int:
    """The number of processes that the launcher says it started.

    Raises:
        UserError: several processes were started without being told of each other.
    """
    if "WORLD_SIZE" in os.environ:
        world_size = int(os.environ["WORLD_SIZE"])
        if world_size > 1 and not {"MASTER_ADDR", "RANK"} <= os.environ.keys():
            raise UserError(
                f"WORLD_SIZE is {world_size} but MASTER_ADDR or RANK is not set, so the processes "
                f"cannot find each other; {REMEDY}"
            )
        return world_size
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if int(os.environ.get(name, "1")) > 1:
            raise UserError(
                f"{name} is {os.environ[name]} but WORLD_SIZE is not set: these processes would "
                f"train independently and overwrite each other; {REMEDY}"
            )
    return 1


@contextmanager
def _gathering(processes: int, seconds: float) -> Iterator[None]:
    """Process groups are made within. Raises LostError if a rank was waited for in vain."""
    try:
        yield
    except RuntimeError as error:
        if not _of_others(error):
            raise
        reason = str(error).partition("\n")[0]
        raise LostError(
            f"not all of the {processes} processes came together within {seconds:g} s: {reason}"
        ) from error


def _check_gpu(local_rank: int, visible: int) -> None:
    """Raises UserError if there is no GPU for this process."""
    if local_rank >= visible:
        raise UserError(
            f"process {local_rank} (from 0) of this machine has no GPU: it sees {visible} of them; "
            "start as many processes as GPUs on each machine, each of which must see all of them "
            "(CUDA_VISIBLE_DEVICES; Slurm: --gpus-per-node, not --gpus-per-task)"
        )


class World:
    """All processes of a run.

    Args:
        timeout_seconds: how long a rank is waited for before the run ends without it.

    Raises:
        UserError: the processes do not form the one world that was launched, or are more than
            the GPUs of their machine.
        LostError: a rank was not there in time.
    """

    def __init__(self, timeout_seconds: float = 600) -> None:
        launched = launched_world_size()
        on_cpu = not torch.cuda.is_available()
        if not on_cpu:
            _check_gpu(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count())
        # On GPUs the control group is to give up first: it can say whom it waited for.
        patience = timedelta(seconds=timeout_seconds if on_cpu else timeout_seconds + 60)
        with _gathering(launched, timeout_seconds):
            self._state = PartialState(cpu=on_cpu, timeout=patience)
        if self.size != launched:
            raise UserError(
                f"{launched} processes were launched, but this one sees a world of "
                f"{self.size}: they would train independently; {REMEDY}"
            )
        self._pulse: Heartbeat | None = None
        # What ranks agree on between steps must not wait for the GPU.
        self._control: Any = None
        if self.size > 1:
            with _gathering(launched, timeout_seconds):
                self._control = dist.new_group(
                    backend="gloo", timeout=timedelta(seconds=timeout_seconds)
                )
            store = dist.distributed_c10d._get_default_store().clone()
            self._pulse = Heartbeat(store, self.rank, self.size, timeout_seconds)
        self._broken = False

    @property
    def rank(self) -> int:
        return self._state.process_index

    @property
    def size(self) -> int:
        return self._state.num_processes

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return self._state.device

    def ensure_process_group(self) -> None:
        """A process group even of one process, for a library that asks for it."""
        if not dist.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)

    def mark_progress(self, doing: str = "") -> None:
        """Have the others know how far this rank has come; `doing` is told if it gets lost."""
        if self._pulse:
            self._pulse.mark_progress(doing)

    def all_reduce_mean(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Average scalars over the ranks and read them: one transfer from the device for all."""
        self.mark_progress()
        values = torch.stack([term.double() for term in terms.values()])
        if self.size > 1:
            dist.all_reduce(values)
        values = values / self.size
        return dict(zip(terms, values.tolist(), strict=True))

    def all_reduce_max(self, number: int) -> int:
        """The largest of the ranks' numbers, on every rank. Does not wait for the GPU."""
        if self._control is None:
            return number
        self.mark_progress()
        value = torch.tensor(number)
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._control)
        return int(value)

    def all_gather(self, value: Any) -> list[Any]:
        """The plain values of all ranks, on every rank."""
        self.mark_progress()
        values = [value] * self.size
        if self._control is not None:
            dist.all_gather_object(values, value, group=self._control)
        return values

    def run_on_all_ranks(self, share: Callable[[], T]) -> T:
        """Do this rank's share of a work, and return when every rank has done its own.

        Raises:
            WorldError: on every rank, where a rank's share ended in a UserError, or for want of
                memory on its GPU; it says why.
        """
        complaint = ""
        try:
            done = share()
        except UserError as error:
            complaint = str(error)
        except torch.OutOfMemoryError as error:
            complaint = str(error).partition("\n")[0]
        complaints = [told for told in self.all_gather(complaint) if told]
        if complaints:
            raise WorldError(complaints[0])
        return done

    def broadcast_from_main(self, produce: Callable[[], T]) -> T:
        """What rank 0 produces, on every rank. Raises WorldError as `together` does."""
        produced = [self.run_on_all_ranks(lambda: produce() if self.is_main else None)]
        self.mark_progress()
        if self._control is not None:
            dist.broadcast_object_list(produced, src=0, group=self._control)
        return cast(T, produced[0])

    def all_reduce_sum_(self, *sums: Tensor) -> None:
        """Make sums over this rank's share sums over all, in place."""
        self.mark_progress()
        if self.size > 1:
            for each in sums:
                dist.all_reduce(each)

    def barrier(self) -> None:
        """Return when every rank has come here."""
        self.all_reduce_max(0)

    def explained(self, error: Exception) -> Exception:
        """What to raise for an error of this rank: a RankError if a person can mend the cause.

        Where another rank has gone, one of those that are left tells which, at once: what a rank
        still has to close may hang, and is then ended.
        """
        if self._pulse is None or isinstance(error, WorldError | RankError):
            return error
        self._broken = True
        if isinstance(error, UserError) or not _of_others(error):
            self._pulse.leave()
            return RankError(str(error)) if isinstance(error, UserError) else error
        self._pulse.report_cause()
        return LostError()

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Errors within are raised as `explained`, ahead of what surrounds this."""
        try:
            yield
        except Exception as error:
            raise self.explained(error) from error

    def close(self) -> None:
        """Leave the world. A broken one is left as it is: its other ranks may never answer."""
        if dist.is_initialized() and not self._broken:
            dist.destroy_process_group()
        if self._pulse:
            self._pulse.close()


def _of_others(error: Exception) -> bool:
    """Whether an error says that a collective failed."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in GLOO_SIGNS)
    )
