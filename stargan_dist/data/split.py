"""Images of a split in memory, as grids and small networks use them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stargan_dist.data import transforms
from stargan_dist.data.fetch import fetch_in_order
from stargan_dist.data.order import Location
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.sample import Sample
from stargan_dist.errors import UserError, printable


@dataclass(frozen=True)
class LoadedSplit:
    """Images of a split in memory, without augmentation.

    Attributes:
        images: uint8 (N, 3, size, size).
        labels: int64 (N,), or float (N, `Labels.vector_dim`).
        paths: paths of the original files, relative to the builder's source.
        domains: names of the labels.
        locations: locations in the split; none for images that are of no split.
    """

    images: Tensor
    labels: Tensor
    paths: list[str]
    domains: list[str]
    locations: list[Location] = field(default_factory=list)


def load_split(
    reader: ShardReader,
    size: int,
    *,
    first: int = 0,
    per_domain: int | None = None,
    domains: int | None = None,
    replace_unreadable: bool = False,
) -> LoadedSplit:
    """Load images of each domain of a split, in the order of the shards.

    Args:
        reader: reader of the split.
        size: width and height of the loaded images, in pixels.
        first: number of the first image of each domain; numbers wrap around after the last image.
        per_domain: images per domain; None: all.
        domains: number of domains, from the first; None: all.
        replace_unreadable: load the next image of the domain in place of an unreadable one.

    Raises:
        UserError: an image cannot be read or decoded; with `replace_unreadable`, none of its
            domain; or a domain has no images in the split.
    """
    images, locations, paths = [], [], []
    numbers = _numbers(reader, first, per_domain, domains)
    _check_not_empty(reader, {domain for domain, _ in numbers})
    wanted = (reader.locate(d, number % reader.num_images(d)) for d, number in numbers)
    for (domain, number), _ in zip(numbers, fetch_in_order(reader, wanted), strict=True):
        candidates = reader.num_images(domain) if replace_unreadable else 1
        location, image, sample = _load_next(reader, domain, number, candidates)
        images.append(transforms.resize(image, size))
        locations.append(location)
        paths.append(sample.metadata.path)
    stacked = np.stack(images) if images else np.zeros((0, 3, size, size), np.uint8)
    return LoadedSplit(
        torch.from_numpy(stacked),
        torch.tensor([location.domain for location in locations], dtype=torch.int64),
        paths,
        reader.index.domains[:domains],
        locations,
    )


def _numbers(
    reader: ShardReader, first: int, per_domain: int | None, domains: int | None
) -> list[tuple[int, int]]:
    """Return the images to load: domains, and numbers in the domains that do not wrap around."""
    return [
        (domain, first + i)
        for domain in range(len(reader.index.domains[:domains]))
        for i in range(reader.num_images(domain) if per_domain is None else per_domain)
    ]


def _check_not_empty(reader: ShardReader, domains: Iterable[int]) -> None:
    """Raise UserError if a domain has no images in the split."""
    for domain in domains:
        if not reader.num_images(domain):
            raise UserError(
                f"{reader.url}: domain {printable(reader.index.domains[domain], 200)} has no "
                f"images in split {reader.split}: name other pictures, or rebuild the shards with "
                "some"
            )


def _load_next(
    reader: ShardReader, domain: int, number: int, candidates: int
) -> tuple[Location, Image.Image, Sample]:
    """Load the first of some consecutive images that can be read."""
    for candidate in range(number, number + candidates):
        location = reader.locate(domain, candidate % reader.num_images(domain))
        try:
            return location, *reader.read_image(location)
        except UserError:
            if candidate == number + candidates - 1:
                raise
    raise AssertionError("no candidates")
