"""Mean landmarks of a dataset, which photographs are aligned to."""

import io
import json
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from stargan_dist import storage
from stargan_dist.console.progress import progress_bar
from stargan_dist.data.batch import to_unit
from stargan_dist.data.images import domain_images, load_images, rank_batches
from stargan_dist.data.reader import ShardReader
from stargan_dist.errors import explained
from stargan_dist.faces.points import num_landmarks, points_of
from stargan_dist.nets.fan import FAN

SIZE = 256  # px of the images that mean landmarks refer to


@torch.no_grad()
def mean_landmarks(
    network: FAN, reader: ShardReader, *, batch_size: int, workers: int
) -> np.ndarray:
    """Return the mean landmarks float64 (L, 2) of all images of a split: x, y in pixels of `SIZE`.

    Raises:
        UserError: an image cannot be read or decoded.
    """
    device, count = network.l0.weight.device, num_landmarks(network.l0.out_channels)
    total = sum(map(sum, reader.index.counts(reader.split)))
    sums = torch.zeros(count, 2, dtype=torch.float64)
    with progress_bar(total, "images", description="landmarks", brief=True) as progress:
        for images in _all_images(reader, network.input_size, batch_size, workers):
            heat_maps = network(to_unit(images.to(device)))[:, :count]
            sums += points_of(heat_maps, SIZE).double().sum(0).cpu()
            progress.update(len(images))
    return (sums / total).numpy()


def _all_images(reader: ShardReader, size: int, batch_size: int, workers: int) -> Iterator[Tensor]:
    """Yield all images of a split, uint8 (B, 3, size, size)."""
    for domain in range(len(reader.index.domains)):
        batches = rank_batches(reader.num_images(domain), batch_size, 0, 1)
        loaded = load_images(
            domain_images(reader, domain), size, batches,
            workers=workers, start_method="fork", pin_memory=False,
        )  # fmt: skip
        with closing(loaded):
            yield from (images for _, images in loaded)


def write(url: str, mean: np.ndarray) -> None:
    """Write mean landmarks (L, 2): as the array `mean` of an .npz file, else as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    buffer = io.BytesIO()
    if url.endswith(".npz"):
        np.savez(buffer, mean=mean)
    else:
        buffer.write(json.dumps({"mean": mean.round(3).tolist()}).encode() + b"\n")
    try:
        storage.write_bytes(url, buffer.getvalue())
    except OSError as error:
        raise explained(f"cannot write {url}: {error}", error) from error
