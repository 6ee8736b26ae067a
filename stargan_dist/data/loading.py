"""The loader of a rank: which process loads which slots."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info

from stargan_dist import storage
from stargan_dist.data.batch import Batch
from stargan_dist.data.read_ahead import ReadAhead
from stargan_dist.data.skipped import SkippedSamples
from stargan_dist.data.stream import LoaderOutput, Slots
from stargan_dist.data.workers import iterate, open_loader

ALIGNMENT = 64  # of the fields of a batch in their common memory, in bytes


def _collate(slots: list[LoaderOutput]) -> LoaderOutput:
    fields = [*zip(*(slot.batch for slot in slots), strict=True)]
    stacked = iter(_stack([field for field in fields if field[0] is not None]))
    batch = Batch(*(None if field[0] is None else next(stacked) for field in fields))  # type: ignore[arg-type]
    faults = [fault for slot in slots for fault in slot.faults]
    return LoaderOutput(batch, faults, storage.take_traffic(), slots[0].ahead_bytes)


def _stack(fields: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """Stack each field in one block of memory: to pass a block costs a file and a connection."""
    sizes = [sum(t.nbytes for t in field) for field in fields]
    *begins, total = accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0)
    memory = _allocate(total)
    stacked = []
    for field, begin, size in zip(fields, begins, sizes, strict=True):
        out = memory[begin : begin + size].view(field[0].dtype)
        stacked.append(torch.stack(field, out=out.view(len(field), *field[0].shape)))
    return stacked


def _allocate(size: int) -> Tensor:
    """Allocate uint8 (size,); in a worker in shared memory, which is passed without a copy."""
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))


class TrafficMeter:
    """Traffic of the loader processes of a rank since the last `take`."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.images = self.requests = self.bytes = self.ahead_bytes = 0

    def add(self, output: LoaderOutput) -> None:
        """Add a batch."""
        batch = output.batch
        per_slot = sum(images is not None for images in (batch.x, batch.x_ref, batch.x_ref2))
        self.images += len(batch.x) * per_slot
        self.requests += output.traffic.requests
        self.bytes += output.traffic.bytes
        self.ahead_bytes = max(self.ahead_bytes, output.ahead_bytes)

    def take(self, seconds: float) -> dict[str, float]:
        """Return metrics of an interval, by tag, and begin the next one."""
        metrics = {
            "data/requests_per_image": self.requests / max(self.images, 1),
            "data/mib_per_second": self.bytes / 2**20 / seconds,
            "data/ahead_mib": self.ahead_bytes / 2**20,
        }
        self._reset()
        return metrics


class RankSampler(Sampler[list[int]]):
    """The slots of one rank, a list for each step: ranks divide each global batch in order."""

    def __init__(self, steps: range, batch_size: int, rank: int, world_size: int) -> None:
        assert batch_size % world_size == 0
        self.steps, self.batch_size = steps, batch_size
        rank_batch_size = batch_size // world_size
        self.positions = range(rank * rank_batch_size, (rank + 1) * rank_batch_size)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        return ([step * self.batch_size + i for i in self.positions] for step in self.steps)


def training_loader(
    slots: Slots,
    steps: range,
    *,
    rank: int,
    world_size: int,
    workers: int,
    start_method: str = "fork",
    pin_memory: bool = False,
    ahead_bytes: int = 0,
) -> DataLoader[LoaderOutput]:
    """Return a loader of a rank's batches of the given steps.

    The batches and their order do not depend on the number of workers and on `ahead_bytes`.

    Args:
        ahead_bytes: bound of what each loader process fetches from a far store before it is
            needed; 0: nothing.
    """
    is_ahead = ahead_bytes > 0 and any(reader.is_far for reader in slots.readers)
    return open_loader(
        ReadAhead(slots, steps.stop * slots.batch_size, ahead_bytes) if is_ahead else slots,
        RankSampler(steps, slots.batch_size, rank, world_size),
        _collate,
        workers=workers,
        start_method=start_method,
        pin_memory=pin_memory,
    )


def iterate_batches(
    loader: DataLoader[LoaderOutput], skipped: SkippedSamples, meter: TrafficMeter | None = None
) -> Generator[Batch, None, None]:
    """Iterate over the batches of a loader, as `workers.iterate` does.

    Replaced samples are added to `skipped` when their batch is yielded, not when it is prefetched.
    So is the traffic to `meter`.
    """
    with closing(iterate(loader)) as outputs:
        for output in outputs:
            for fault in output.faults:
                skipped.add(*fault)
            if meter:
                meter.add(output)
            yield output.batch
