"""Samples out of shards: by range of bytes through fsspec, parsed by WebDataset.

The order is known beforehand (data/order.py), and the index knows where each sample lies, so a
reader fetches exactly the samples it is asked for. Which worker reads what has no influence on
what is read.
"""

import io
import json
import signal
from collections import OrderedDict
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from webdataset.tariterators import group_by_keys, tar_file_expander

from stargan_dist import storage
from stargan_dist.batch import Batch
from stargan_dist.data import transforms
from stargan_dist.data.order import Location, Order, generator
from stargan_dist.errors import UserError
from stargan_dist.shards.index import Index, read_index, read_offsets

OPEN_SHARDS = 64  # per reader


@dataclass(frozen=True)
class Sample:
    """One image as stored, and what the builder wrote beside it."""

    key: str
    image: bytes
    facts: dict[str, Any]


class ShardReader:
    """Random access to the samples of one split. Picklable: open files stay in their process."""

    def __init__(self, url: str, index: Index, split: str) -> None:
        self.url, self.index, self.split = url, index, split
        self._files: OrderedDict[str, tuple[Any, list[int]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def _open(self, name: str) -> tuple[Any, list[int]]:
        """An open shard and its offsets; the one used longest ago makes room."""
        if name not in self._files:
            while len(self._files) >= OPEN_SHARDS:
                self._files.popitem(last=False)[1][0].close()
            fs, path = storage.filesystem(storage.join(self.url, name))
            self._files[name] = fs.open(path, "rb"), read_offsets(self.url, name)
        self._files.move_to_end(name)
        return self._files[name]

    def read(self, location: Location) -> Sample:
        """Fetch one sample.

        Raises:
            UserError: the shard cannot be read or does not hold what the index says.
        """
        domain = self.index.domains[location.domain]
        name = self.index.splits[self.split][domain][location.shard].name
        try:
            file, offsets = self._open(name)
            begin, end = offsets[location.sample], offsets[location.sample + 1]
            file.seek(begin)
            return _parse(file.read(end - begin), name)
        except Exception as error:  # storage, tar and JSON each fail in their own ways
            raise UserError(
                f"cannot read sample {location.sample} of shard {storage.join(self.url, name)}: "
                f"{error!r}; restore the shard or build the set again"
            ) from error

    def image(self, location: Location) -> tuple[Any, Sample]:
        """The decoded RGB image of a sample, and the sample."""
        sample = self.read(location)
        try:
            return transforms.decode(sample.image), sample
        except UserError as error:
            raise UserError(f"sample {sample.key} of {self.url}: {error}") from error


def _parse(data: bytes, url: str) -> Sample:
    """The members of one sample are a tar of their own: WebDataset's stages take it as a stream."""
    members = tar_file_expander([{"url": url, "stream": io.BytesIO(data)}])
    (row,) = group_by_keys(members)
    facts = json.loads(row.pop("json"))
    (suffix,) = (name for name in row if not name.startswith("__"))
    return Sample(row["__key__"], row[suffix], facts)


class Slots(Dataset[Batch]):
    """What each slot of training holds, as a function of the seed and the slot's number alone."""

    def __init__(self, reader: ShardReader, seed: int, image_size: int, latent_dim: int) -> None:
        self.reader, self.seed = reader, seed
        self.image_size, self.latent_dim = image_size, latent_dim
        self.order = Order(reader.index.counts(reader.split), seed)

    def _image(self, location: Location, role: str, slot: int) -> Tensor:
        image, _ = self.reader.image(location)
        rng = generator(self.seed, "augment", role, slot)
        return torch.from_numpy(transforms.augment(image, self.image_size, rng))

    def __getitem__(self, slot: int) -> Batch:
        source = self.order.source(slot)
        ref, ref2 = self.order.references(slot)
        latents = generator(self.seed, "latent", slot).standard_normal((2, self.latent_dim))
        z, z2 = torch.from_numpy(latents.astype(np.float32))
        return Batch(
            x=self._image(source, "source", slot),
            y=torch.tensor(source.domain),
            x_ref=self._image(ref, "reference", slot),
            x_ref2=self._image(ref2, "reference2", slot),
            y_trg=torch.tensor(ref.domain),
            z=z,
            z2=z2,
        )


class RankSlots(Sampler[list[int]]):
    """The slots of one rank, a list for each step: ranks share out each global batch in order."""

    def __init__(self, steps: range, batch_size: int, rank: int, world_size: int) -> None:
        assert batch_size % world_size == 0
        self.steps, self.batch_size = steps, batch_size
        share = batch_size // world_size
        self.mine = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        return ([step * self.batch_size + i for i in self.mine] for step in self.steps)


def _ignore_signals(_worker: int) -> None:
    """Schedulers signal every process of a job; only the ranks answer, workers end with them."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def training_loader(
    slots: Slots,
    steps: range,
    batch_size: int,
    *,
    rank: int,
    world_size: int,
    workers: int,
    pin_memory: bool,
) -> DataLoader[Batch]:
    """This rank's batches of the given steps, in order, whatever the number of workers."""
    return DataLoader(
        slots,
        batch_sampler=RankSlots(steps, batch_size, rank, world_size),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
    )


def batches(loader: DataLoader[Batch]) -> Generator[Batch, None, None]:
    """Iterate a loader, and end its workers when the generator is closed or fails.

    A UserError of a worker is raised as it was, without the traceback that torch adds.
    """
    iterator = iter(loader)
    try:
        yield from iterator
    except UserError as error:
        raise UserError(str(error).rsplit(f"{UserError.__name__}: ", 1)[-1].strip()) from error
    finally:
        # Workers ignore SIGTERM: an interpreter that met them at exit would wait for ever.
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


def check_split(index: Index, split: str, minimum: int, url: str) -> None:
    """Raises UserError if a domain has too few images in a split."""
    for domain, counts in zip(index.domains, index.counts(split), strict=True):
        if sum(counts) < minimum:
            raise UserError(
                f"{url}: domain {domain} has {sum(counts)} images in split {split}, "
                f"at least {minimum} are needed: add images and build the shards again"
            )


@dataclass(frozen=True)
class LoadedSplit:
    """Images held in memory, without augmentation.

    images uint8 (N, 3, size, size), labels int64 (N,), paths relative to the source as built.
    """

    images: Tensor
    labels: Tensor
    paths: list[str]
    domains: list[str]

    def of(self, label: int) -> Tensor:
        """The images of one domain."""
        return self.images[self.labels == label]


def load_split(
    shards_url: str,
    split: str,
    size: int,
    *,
    first: int = 0,
    per_domain: int | None = None,
    domains: int | None = None,
) -> LoadedSplit:
    """Read images of each domain of a split, in the order of the shards.

    Args:
        first: number of the first image of each domain; beyond the last, it wraps around.
        per_domain: how many of each domain; None: all.
        domains: only the first so many domains; None: all.
    """
    reader = ShardReader(shards_url, read_index(shards_url), split)
    images, labels, paths = [], [], []
    for domain, counts in enumerate(reader.index.counts(split)[:domains]):
        places = [Location(domain, shard, i) for shard, n in enumerate(counts) for i in range(n)]
        for i in range(len(places) if per_domain is None else per_domain):
            image, sample = reader.image(places[(first + i) % len(places)])
            images.append(transforms.fit(image, size))
            labels.append(domain)
            paths.append(sample.facts["path"])
    stacked = np.stack(images) if images else np.zeros((0, 3, size, size), np.uint8)
    return LoadedSplit(
        torch.from_numpy(stacked),
        torch.tensor(labels, dtype=torch.int64),
        paths,
        reader.index.domains[:domains],
    )
