"""The one module that knows of processes: it alone imports accelerate."""

import gc
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from stargan_dist.errors import RankError, UserError, WorldError

T = TypeVar("T")

REMEDY = (
    "start one world of N processes with "
    "`accelerate launch --multi_gpu --num_processes N -m stargan_dist.train …` "
    "(without GPUs: ACCELERATE_USE_CPU=1 ahead of it), or one process with "
    "`python -m stargan_dist.train …`"
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


def total_norm(network: nn.Module) -> Tensor:
    """The norm of all gradients of a network, left on the device."""
    return nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])


class Engine:
    """DDP over any number of processes, through Accelerate.

    Raises:
        UserError: the processes do not form the one world that was launched.
    """

    def __init__(self) -> None:
        launched = launched_world_size()
        # The reference-guided step leaves F and E unused. That also keeps DDP's buckets as they
        # are first made: rebuilt ones would sum in another order, and a resumed run of three or
        # more ranks would differ in the last bits. Never static_graph: with R1 the ranks would
        # drift apart without an error.
        ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
        on_cpu = not torch.cuda.is_available()
        self._accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[ddp])
        if self.world_size != launched:
            raise UserError(
                f"{launched} processes were launched, but this one sees a world of "
                f"{self.world_size}: they would train independently; {REMEDY}"
            )
        # What ranks agree on between steps must not wait for the GPU.
        self._control: Any = dist.new_group(backend="gloo") if self.world_size > 1 else None
        self._sides: dict[str, nn.Module] = {}
        self._networks: Mapping[str, nn.Module] = {}
        self._optimizers: Mapping[str, torch.optim.Optimizer] = {}

    @property
    def rank(self) -> int:
        return self._accelerator.process_index

    @property
    def world_size(self) -> int:
        return self._accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    def prepare(
        self,
        sides: Mapping[str, nn.Module],
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        """Wrap the sides. Networks and optimizers stay raw: they are stepped by name."""
        self._sides = {
            name: self._accelerator.prepare_model(side, device_placement=False)
            for name, side in sides.items()
        }
        self._networks, self._optimizers = networks, optimizers

    def update(self, side: str, *args: Any, steps: tuple[str, ...]) -> dict[str, Tensor]:
        """One loss of one side: forward, backward with averaged gradients, then the named steps.

        Returns the terms of this rank and the gradient norms, on the device.
        """
        module = self._sides[side]
        loss, terms = module(*args)
        loss.backward()
        for name in steps:
            terms[f"grad_norm_{name}"] = total_norm(self._networks[name])
            self._optimizers[name].step()
        module.zero_grad(set_to_none=True)
        return terms

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Average scalars over the ranks and read them: one transfer from the device for all."""
        values = torch.stack([term.double() for term in terms.values()])
        if self.world_size > 1:
            dist.all_reduce(values)
        values = values / self.world_size
        return dict(zip(terms, values.tolist(), strict=True))

    def agree(self, number: int) -> int:
        """The largest of the ranks' numbers, on every rank. Does not wait for the GPU."""
        if self._control is None:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._control)
        return int(value)

    def gather(self, value: Any) -> list[Any]:
        """The plain values of all ranks, on every rank."""
        values = [value] * self.world_size
        if self._control is not None:
            dist.all_gather_object(values, value, group=self._control)
        return values

    def together(self, share: Callable[[], T]) -> T:
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
        complaints = [told for told in self.gather(complaint) if told]
        if complaints:
            raise WorldError(complaints[0])
        return done

    def from_main(self, produce: Callable[[], T]) -> T:
        """What rank 0 produces, on every rank. Raises WorldError as `together` does."""
        produced = [self.together(lambda: produce() if self.is_main else None)]
        if self._control is not None:
            dist.broadcast_object_list(produced, src=0, group=self._control)
        return cast(T, produced[0])

    def add_up(self, *sums: Tensor) -> None:
        """Make sums over this rank's share sums over all, in place."""
        if self.world_size > 1:
            for each in sums:
                dist.all_reduce(each)

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        self.agree(0)

    def explained(self, error: Exception) -> Exception:
        """What to raise for an error of this rank: a RankError if a person can mend the cause."""
        if self.world_size == 1:
            return error
        if isinstance(error, UserError):
            return error if isinstance(error, WorldError) else RankError(str(error))
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            return RankError("lost another rank: its own message, or the launcher's, tells why")
        return error

    def close(self) -> None:
        """Leave the world. A wrapper that outlived its process group could abort at exit."""
        self._sides = {}
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()
