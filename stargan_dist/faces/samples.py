"""Images of shards with their landmarks, as a landmark network is fitted to them."""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from stargan_dist.data import transforms
from stargan_dist.data.fetch import fetch_in_order
from stargan_dist.data.images import MIN_BATCHES_PER_WORKER, rank_batches
from stargan_dist.data.order import Location, Order
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.workers import iterate, open_loader
from stargan_dist.faces.manifest import Manifest


class LandmarkBatch(NamedTuple):
    """Images with their landmarks.

    Attributes:
        images: uint8 (B, 3, S, S).
        points: float32 (B, L, 2), x, y in pixels of the image.
    """

    images: Tensor
    points: Tensor


class LandmarkImages(Dataset[LandmarkBatch]):
    """Numbered images of a split with their landmarks, for one pass over `batches`.

    Args:
        reader: reader of the split.
        manifest: landmarks of all its images.
        size: width and height of the images, in pixels.
        locate: returns the location of a number.
        batches: numbers of each batch.
    """

    def __init__(
        self,
        reader: ShardReader,
        manifest: Manifest,
        size: int,
        locate: Callable[[int], Location],
        batches: Sequence[Sequence[int]],
    ) -> None:
        self.reader, self.manifest, self.size = reader, manifest, size
        self.locate, self.batches = locate, batches
        self._in_order: Iterator[Location] | None = None  # of this loader process

    def __getitem__(self, number: int) -> LandmarkBatch:
        """Return one image, B = 1.

        Raises:
            UserError: it cannot be read or decoded, or has no landmarks.
        """
        if self._in_order is None:
            self._in_order = fetch_in_order(self.reader, self._locations())
        location = next(self._in_order)
        assert location == self.locate(number)
        image, sample = self.reader.read_image(location)
        encoding = self.reader.index.encoding
        fractions = self.manifest.fractions(sample.metadata.path, image.size, encoding)
        pixels = torch.from_numpy(transforms.resize(image, self.size))
        return LandmarkBatch(pixels[None], torch.from_numpy(fractions * self.size).float()[None])

    def _locations(self) -> Iterator[Location]:
        """Yield the locations that this process will load. Loader processes take turns."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return (self.locate(number) for batch in self.batches[first::step] for number in batch)


def _collate(items: list[LandmarkBatch]) -> LandmarkBatch:
    return LandmarkBatch(*(torch.cat(field) for field in zip(*items, strict=True)))


@dataclass(frozen=True)
class Samples:
    """The images of a dataset with their landmarks.

    Attributes:
        train: reader of the training images.
        val: reader of the validation images.
        manifest: landmarks of all of them.
        size: width and height of the loaded images, in pixels.
        workers: loader processes.
    """

    train: ShardReader
    val: ShardReader
    manifest: Manifest
    size: int
    workers: int

    @property
    def fingerprint(self) -> str:
        """Hash of images and landmarks."""
        text = self.train.index.fingerprint + self.manifest.fingerprint
        return hashlib.sha256(text.encode()).hexdigest()

    def training(
        self, steps: range, batch_size: int, seed: int
    ) -> Generator[LandmarkBatch, None, None]:
        """Yield the batch of each step: a function of the seed and the step alone.

        Each pass visits every image of a domain once, in a random order. Domains are balanced.
        """
        order = Order(self.train.index.counts(self.train.split), seed)
        batches = [range(step * batch_size, (step + 1) * batch_size) for step in steps]
        return self._load(self.train, order.source, batches)

    def validation(self, batch_size: int) -> Generator[LandmarkBatch, None, None]:
        """Yield all validation images once, in the order of the shards."""
        reader = self.val
        domains = range(len(reader.index.domains))
        locations = [reader.locate(d, i) for d in domains for i in range(reader.num_images(d))]
        batches = rank_batches(len(locations), batch_size, 0, 1)
        return self._load(reader, locations.__getitem__, batches)

    def _load(
        self,
        reader: ShardReader,
        locate: Callable[[int], Location],
        batches: Sequence[Sequence[int]],
    ) -> Generator[LandmarkBatch, None, None]:
        images = LandmarkImages(reader, self.manifest, self.size, locate, batches)
        workers = min(self.workers, len(batches) // MIN_BATCHES_PER_WORKER)
        return iterate(open_loader(images, batches, _collate, workers=workers))
