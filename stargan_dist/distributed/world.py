"""The process group of a run: ranks, devices, collectives, and errors of single ranks."""

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
from stargan_dist.errors import (
    USER_ERROR,
    LostRankError,
    RankError,
    UserError,
    WorldError,
    as_user_error,
)

T = TypeVar("T")

# Gloo raises a plain RuntimeError. These texts identify it: the path of the source file that raised
# it, or, without a path, the whole message of a collective that failed because another one, which
# waited at the same time, was the first to time out.
GLOO_MESSAGES = ("gloo", "Application timeout caused pair closure")

LAUNCH_REMEDY = (
    "start one world of N processes with "
    "`accelerate launch --multi_gpu --num_processes N -m stargan_dist.train …`, "
    "or one process with "
    "`python -m stargan_dist.train …`; on Slurm: `sbatch slurm/train_8gpu.sh …`"
)


def launched_world_size() -> int:
    """Return the number of processes that the launcher started, from the environment.

    Raises:
        UserError: several processes were started without the variables that connect them.
    """
    if "WORLD_SIZE" in os.environ:
        world_size = int(os.environ["WORLD_SIZE"])
        if world_size > 1 and not {"MASTER_ADDR", "RANK"} <= os.environ.keys():
            raise UserError(
                f"WORLD_SIZE is {world_size} but MASTER_ADDR or RANK is not set, so the processes "
                f"cannot find each other; {LAUNCH_REMEDY}"
            )
        return world_size
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if int(os.environ.get(name, "1")) > 1:
            raise UserError(
                f"{name} is {os.environ[name]} but WORLD_SIZE is not set: these processes would "
                f"train independently and overwrite each other; {LAUNCH_REMEDY}"
            )
    return 1


@contextmanager
def _joining(world_size: int, timeout_seconds: float) -> Iterator[None]:
    """Create process groups inside this context.

    Raises:
        LostRankError: a rank did not join within the time limit.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_peer_failure(error):
            raise
        reason = str(error).partition("\n")[0]
        raise LostRankError(
            f"not all of the {world_size} processes joined the process group within "
            f"{timeout_seconds:g} s: {reason}"
        ) from error


def _check_gpu(local_rank: int, visible_gpus: int) -> None:
    """Raise a UserError if there is no GPU for this process."""
    if local_rank >= visible_gpus:
        raise UserError(
            f"process {local_rank} of this machine (counted from 0) has no GPU: it sees "
            f"{visible_gpus}; start one process per GPU on each machine, and let every process see "
            "all GPUs of its machine (CUDA_VISIBLE_DEVICES; Slurm: --gpus-per-node, not "
            "--gpus-per-task)"
        )


class World:
    """The process group of a run.

    A world of one process needs no launcher: its collectives return their input.

    Args:
        timeout_seconds: time limit of a collective, after which a missing rank ends the run.

    Raises:
        UserError: the processes do not form the one world that was launched, or a machine has
            more processes than GPUs.
        LostRankError: a rank did not join within the time limit.
    """

    def __init__(self, timeout_seconds: float = 600) -> None:
        launched = launched_world_size()
        on_cpu = not torch.cuda.is_available()
        if not on_cpu:
            _check_gpu(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count())
        # On GPUs the control group must time out first: its error names the rank it waited for.
        timeout = timedelta(seconds=timeout_seconds if on_cpu else timeout_seconds + 60)
        with _joining(launched, timeout_seconds):
            self._state = PartialState(cpu=on_cpu, timeout=timeout)
        if self.size != launched:
            raise UserError(
                f"{launched} processes were launched, but this one sees a world of "
                f"{self.size}: they would train independently; {LAUNCH_REMEDY}"
            )
        self._heartbeat: Heartbeat | None = None
        # A separate group, because collectives of host values must not wait for the GPU.
        self._control: Any = None
        if self.size > 1:
            with _joining(launched, timeout_seconds):
                self._control = dist.new_group(
                    backend="gloo", timeout=timedelta(seconds=timeout_seconds)
                )
            store = dist.distributed_c10d._get_default_store().clone()
            self._heartbeat = Heartbeat(store, self.rank, self.size, timeout_seconds)
        self._broken = False

    @property
    def rank(self) -> int:
        """Rank of this process, from 0 to size - 1."""
        return self._state.process_index

    @property
    def size(self) -> int:
        """Number of processes."""
        return self._state.num_processes

    @property
    def is_main(self) -> bool:
        """True on rank 0."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Device of this process: its GPU, or the CPU where there is none."""
        return self._state.device

    def ensure_process_group(self) -> None:
        """Initialise the default process group if a world of one process has none.

        For libraries that require one.
        """
        if not dist.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)

    def mark_progress(self, activity: str = "") -> None:
        """Publish that this rank has made progress.

        Args:
            activity: the current step, which is reported if this rank is lost. "": as before.
        """
        if self._heartbeat:
            self._heartbeat.mark_progress(activity)

    def all_reduce_mean(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Average scalar tensors over all ranks, in float64, and return them as numbers.

        All scalars are read in a single transfer from the device.
        """
        self.mark_progress()
        values = torch.stack([term.double() for term in terms.values()])
        if self.size > 1:
            dist.all_reduce(values)
        values = values / self.size
        return dict(zip(terms, values.tolist(), strict=True))

    def all_reduce_max(self, number: int) -> int:
        """Return the maximum of a number over all ranks, on every rank.

        Does not wait for the GPU.
        """
        if self._control is None:
            return number
        self.mark_progress()
        value = torch.tensor(number)
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._control)
        return int(value)

    def all_gather(self, value: Any) -> list[Any]:
        """Gather a picklable host value from all ranks. Returns the values by rank, on every rank.

        Does not wait for the GPU.
        """
        self.mark_progress()
        values = [value] * self.size
        if self._control is not None:
            dist.all_gather_object(values, value, group=self._control)
        return values

    def gather_to_main(self, tensor: Tensor) -> Tensor | None:
        """Concatenate a tensor in host memory, of one shape on all ranks, by rank on rank 0.

        Returns:
            None on other ranks.
        """
        if self._control is None:
            return tensor
        self.mark_progress()
        parts = [torch.empty_like(tensor) for _ in range(self.size)] if self.is_main else None
        dist.gather(tensor, parts, dst=0, group=self._control)
        return torch.cat(parts) if parts else None

    def run_on_all_ranks(self, task: Callable[[], T]) -> T:
        """Run a task on this rank, and return its result once all ranks have finished theirs.

        Raises:
            WorldError: on every rank, if the task of any rank raised a UserError, met a fault of
                storage or the machine (`as_user_error`), or ran out of GPU memory. Message and exit
                code are those of the lowest such rank, which is named if other ranks succeeded.
        """
        failure: tuple[str, int] | None = None
        try:
            result = task()
        except torch.OutOfMemoryError as error:
            failure = str(error).partition("\n")[0], USER_ERROR
        except Exception as error:
            explanation = as_user_error(error)
            if not isinstance(explanation, UserError):
                raise
            failure = str(explanation), explanation.exit_code
        failures = self.all_gather(failure)
        failed = [rank for rank, failure in enumerate(failures) if failure]
        if failed:
            message, exit_code = failures[failed[0]]
            where = "" if len(failed) == self.size else f" (rank {failed[0]})"
            raise WorldError(message + where, exit_code)
        return result

    def check_agreement(self, values: Mapping[str, Any]) -> None:
        """Check that all ranks have the same values. Collective.

        Args:
            values: picklable values by the names that users know them by.

        Raises:
            WorldError: on every rank, if they differ. Names all that differ, and one rank.
        """
        first, *others = self.all_gather(dict(values))
        for rank, other in enumerate(others, 1):
            differences = [
                f"{name} is {first.get(name)} on rank 0 and {other.get(name)} on rank {rank}"
                for name in sorted(first.keys() | other.keys())
                if first.get(name) != other.get(name)
            ]
            if differences:
                raise WorldError(
                    f"the ranks were started differently: {'; '.join(differences)}; start all of "
                    "them with the same command, configuration files and version"
                )

    def broadcast_from_main(self, produce: Callable[[], T]) -> T:
        """Run `produce` on rank 0 and return its result on every rank.

        Raises:
            WorldError: on every rank, if `produce` fails, as `run_on_all_ranks` does.
        """
        results = [self.run_on_all_ranks(lambda: produce() if self.is_main else None)]
        self.mark_progress()
        if self._control is not None:
            dist.broadcast_object_list(results, src=0, group=self._control)
        return cast(T, results[0])

    def all_reduce_sum_(self, *tensors: Tensor) -> None:
        """Sum each tensor over all ranks, in place."""
        self.mark_progress()
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def barrier(self) -> None:
        """Block until all ranks have called this method."""
        self.all_reduce_max(0)

    def report_error(self, error: Exception) -> Exception:
        """Report an error of this rank to the other ranks. Returns the exception to raise.

        If the error shows that another rank is lost, one of the remaining ranks prints which one,
        at once and not when this rank has closed everything: closing may hang, and the process is
        then ended.

        Returns:
            The error itself if it is a WorldError or RankError, or if only a developer can fix its
            cause; a RankError with the same message and exit code for any other UserError, and for
            a fault of storage or the machine; a LostRankError, whose message is already printed, if
            another rank is lost. In a world of one process, always the error itself.
        """
        if self._heartbeat is None or isinstance(error, WorldError | RankError):
            return error
        self._broken = True
        told = as_user_error(error)
        if isinstance(told, UserError) or not _is_peer_failure(error):
            self._heartbeat.announce_exit()
            return RankError(str(told), told.exit_code) if isinstance(told, UserError) else error
        self._heartbeat.report_cause()
        return LostRankError()

    @contextmanager
    def reporting_errors(self) -> Iterator[None]:
        """Pass every error raised inside this context through `report_error`.

        The report comes before any enclosing context is closed.
        """
        try:
            yield
        except Exception as error:
            raise self.report_error(error) from error

    def close(self) -> None:
        """Destroy the process group and stop the heartbeat.

        After an error the process group is not destroyed: other ranks may never answer.
        """
        if dist.is_initialized() and not self._broken:
            dist.destroy_process_group()
        if self._heartbeat:
            self._heartbeat.close()


def _is_peer_failure(error: Exception) -> bool:
    """Return whether an error comes from a failed collective, and so from another rank."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in GLOO_MESSAGES)
    )
