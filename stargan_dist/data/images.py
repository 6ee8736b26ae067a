"""The images of one domain, without augmentation, shared out among ranks."""

from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stargan_dist.data import transforms
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.workers import iterate, open_loader


class Numbered(NamedTuple):
    """Images uint8 (B, 3, size, size), and their numbers in the domain."""

    numbers: list[int]
    images: Tensor


class Images(Dataset[Numbered]):
    """The images of one domain of a split, resized but otherwise as they are."""

    def __init__(self, reader: ShardReader, domain: int, size: int) -> None:
        self.reader, self.domain, self.size = reader, domain, size

    def __getitem__(self, number: int) -> Numbered:
        """Raises UserError if it cannot be read or decoded."""
        image, _ = self.reader.image(self.reader.locate(self.domain, number))
        return Numbered([number], torch.from_numpy(transforms.fit(image, self.size))[None])


def _collate(items: list[Numbered]) -> Numbered:
    numbers = [number for item in items for number in item.numbers]
    return Numbered(numbers, torch.cat([item.images for item in items]))


def share(count: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """Which of `count` items are a rank's, in batches: the shares differ by one at most."""
    mine = list(range(rank, count, world_size))
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]


def load_images(
    reader: ShardReader,
    domain: int,
    size: int,
    batches: list[list[int]],
    *,
    workers: int = 0,
    start_method: str = "fork",
) -> Generator[Numbered, None, None]:
    """Images of a domain by number, batch after batch. Close the generator to end its workers."""
    images = Images(reader, domain, size)
    workers = min(workers, len(batches))
    loader = open_loader(images, batches, _collate, workers=workers, start_method=start_method)
    return iterate(loader)
