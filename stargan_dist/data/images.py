"""The images of one domain, without augmentation, divided among ranks."""

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from stargan_dist.data import transforms
from stargan_dist.data.fetch import fetch_in_order
from stargan_dist.data.order import Location
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.workers import iterate, open_loader

MIN_BATCHES_PER_WORKER = 8  # with fewer batches, starting a process does not pay


class NumberedImages(NamedTuple):
    """Images uint8 (B, 3, size, size) with consecutive numbers in the domain, from `first` on."""

    first: int
    images: Tensor


class DomainImages(Dataset[NumberedImages]):
    """The images of one domain of a split, resized to `size`, for one pass over `batches`."""

    def __init__(
        self, reader: ShardReader, domain: int, size: int, batches: Sequence[Sequence[int]]
    ) -> None:
        self.reader, self.domain, self.size, self.batches = reader, domain, size, batches
        self._in_order: Iterator[Location] | None = None  # of this loader process

    def __getitem__(self, number: int) -> NumberedImages:
        """Return one image, B = 1.

        Raises:
            UserError: it cannot be read or decoded.
        """
        if self._in_order is None:
            self._in_order = fetch_in_order(self.reader, self._locations())
        location = next(self._in_order)
        assert location == self.reader.locate(self.domain, number)
        image, _ = self.reader.read_image(location)
        return NumberedImages(number, torch.from_numpy(transforms.resize(image, self.size))[None])

    def _locations(self) -> Iterator[Location]:
        """Yield the locations that this process will load. Loader processes take turns."""
        worker = get_worker_info()
        own = self.batches[worker.id :: worker.num_workers] if worker else self.batches
        return (self.reader.locate(self.domain, number) for batch in own for number in batch)


def _collate(items: list[NumberedImages]) -> NumberedImages:
    return NumberedImages(items[0].first, torch.cat([item.images for item in items]))


def rank_batches(count: int, batch_size: int, rank: int, world_size: int) -> list[range]:
    """Return a rank's part of `count` items, in batches.

    A rank's items are consecutive, so that it reads few shards. The numbers of items of any two
    ranks differ by at most one.
    """
    begin, end = (count * r // world_size for r in (rank, rank + 1))
    return [range(i, min(i + batch_size, end)) for i in range(begin, end, batch_size)]


def load_images(
    reader: ShardReader,
    domain: int,
    size: int,
    batches: Sequence[Sequence[int]],
    *,
    workers: int,
    start_method: str,
    pin_memory: bool,
) -> Generator[NumberedImages, None, None]:
    """Yield the images of a domain, batch after batch. Closing the generator ends its workers.

    Args:
        reader: reader of the split.
        domain: index of the domain.
        size: width and height of the loaded images, in pixels.
        batches: numbers of the images of each batch, consecutive within a batch.
        workers: loader processes, at most; few batches start fewer.
        start_method: start method of the loader processes.
        pin_memory: load into page-locked memory.
    """
    images = DomainImages(reader, domain, size, batches)
    loader = open_loader(
        images,
        batches,
        _collate,
        workers=min(workers, len(batches) // MIN_BATCHES_PER_WORKER),
        start_method=start_method,
        pin_memory=pin_memory,
    )
    return iterate(loader)
