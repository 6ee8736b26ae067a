"""The loader of a rank: which process loads which slots."""

from collections.abc import Generator, Iterator
from contextlib import closing

from torch.utils.data import DataLoader, Sampler, default_collate

from stargan_dist import storage
from stargan_dist.data.batch import Batch
from stargan_dist.data.read_ahead import ReadAhead
from stargan_dist.data.skipped import SkippedSamples
from stargan_dist.data.stream import LoaderOutput, Slots
from stargan_dist.data.workers import iterate, open_loader


def _collate(slots: list[LoaderOutput]) -> LoaderOutput:
    fields = zip(*(slot.batch for slot in slots), strict=True)
    batch = Batch(*(None if field[0] is None else default_collate([*field]) for field in fields))  # type: ignore[arg-type]
    faults = [fault for slot in slots for fault in slot.faults]
    return LoaderOutput(batch, faults, storage.take_traffic(), slots[0].ahead_bytes)


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
