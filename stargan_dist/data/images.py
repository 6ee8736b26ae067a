"""The images of one domain, without augmentation, shared out among ranks."""

from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stargan_dist.data import transforms
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.workers import iterate, open_loader

BATCHES_OF_A_WORKER = 8  # for fewer a process is not started


class NumberedImages(NamedTuple):
    """Images uint8 (B, 3, size, size) that follow each other in the domain."""

    first: int
    images: Tensor


class Images(Dataset[NumberedImages]):
    """The images of one domain of a split, resized but otherwise as they are."""

    def __init__(self, reader: ShardReader, domain: int, size: int) -> None:
        self.reader, self.domain, self.size = reader, domain, size

    def __getitem__(self, number: int) -> NumberedImages:
        """Raises UserError if it cannot be read or decoded."""
        image, _ = self.reader.image(self.reader.locate(self.domain, number))
        return NumberedImages(number, torch.from_numpy(transforms.fit(image, self.size))[None])


def _collate(items: list[NumberedImages]) -> NumberedImages:
    return NumberedImages(items[0].first, torch.cat([item.images for item in items]))


def share(count: int, batch_size: int, rank: int, world_size: int) -> list[range]:
    """Which of `count` items are a rank's, in batches: a row of them, so that it reads few shards.

    The shares differ by one at most.
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
    """Images of a domain by number, batch after batch. Close the generator to end its workers."""
    images = Images(reader, domain, size)
    loader = open_loader(
        images,
        batches,
        _collate,
        workers=min(workers, len(batches) // BATCHES_OF_A_WORKER),
        start_method=start_method,
        pin_memory=pin_memory,
    )
    return iterate(loader)
