"""Sets of images of one split, without augmentation, divided among ranks."""

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from stargan_dist.data import transforms
from stargan_dist.data.fetch import fetch_in_order
from stargan_dist.data.order import Location
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.workers import iterate, open_loader

MIN_BATCHES_PER_WORKER = 8  # with fewer batches, starting a process does not pay


class ImageSet(NamedTuple):
    """Images of a split in a fixed order.

    Attributes:
        reader: the reader of the split.
        numbers: their numbers in the split, as in `ShardReader.locate_in_split`.
    """

    reader: ShardReader
    numbers: Sequence[int] | np.ndarray

    def locate(self, position: int) -> Location:
        """Return the location of an image by its position in the set."""
        return self.reader.locate_in_split(int(self.numbers[position]))


def domain_images(reader: ShardReader, domain: int) -> ImageSet:
    """Return the images of a domain, in the order of the shards."""
    return ImageSet(reader, reader.numbers(domain))


class NumberedImages(NamedTuple):
    """Images uint8 (B, 3, size, size) of a set, of which the first has the position `first`."""

    first: int
    images: Tensor


class LoadedImages(Dataset[NumberedImages]):
    """The images of a set, resized to `size`, for one pass over `batches`."""

    def __init__(self, image_set: ImageSet, size: int, batches: Sequence[Sequence[int]]) -> None:
        self.image_set, self.size, self.batches = image_set, size, batches
        self._in_order: Iterator[Location] | None = None  # of this loader process

    def __getitem__(self, position: int) -> NumberedImages:
        """Return one image, B = 1.

        Raises:
            UserError: it cannot be read or decoded.
        """
        reader = self.image_set.reader
        if self._in_order is None:
            self._in_order = fetch_in_order(reader, self._locations())
        location = next(self._in_order)
        assert location == self.image_set.locate(position)
        image, _ = reader.read_image(location)
        return NumberedImages(position, torch.from_numpy(transforms.resize(image, self.size))[None])

    def _locations(self) -> Iterator[Location]:
        """Yield the locations that this process will load. Loader processes take turns."""
        worker = get_worker_info()
        own = self.batches[worker.id :: worker.num_workers] if worker else self.batches
        return (self.image_set.locate(position) for batch in own for position in batch)


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
    image_set: ImageSet,
    size: int,
    batches: Sequence[Sequence[int]],
    *,
    workers: int,
    start_method: str,
    pin_memory: bool,
) -> Generator[NumberedImages, None, None]:
    """Yield the images of a set, batch after batch. Closing the generator ends its workers.

    Args:
        image_set: the set.
        size: width and height of the loaded images, in pixels.
        batches: positions in the set of the images of each batch.
        workers: loader processes, at most; few batches start fewer.
        start_method: start method of the loader processes.
        pin_memory: load into page-locked memory.
    """
    images = LoadedImages(image_set, size, batches)
    loader = open_loader(
        images,
        batches,
        _collate,
        workers=min(workers, len(batches) // MIN_BATCHES_PER_WORKER),
        start_method=start_method,
        pin_memory=pin_memory,
    )
    return iterate(loader)
