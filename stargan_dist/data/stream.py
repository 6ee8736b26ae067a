"""Slots to batches: what each slot of training holds, and who loads it.

The order is known beforehand (data/order.py), and any sample can be read by itself
(data/reader.py). So which worker of which rank loads a slot has no influence on what it holds.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from stargan_dist.batch import Batch
from stargan_dist.data import transforms
from stargan_dist.data.order import Location, Order, generator
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.skipped import Fault, Skipped
from stargan_dist.data.workers import iterate, open_loader
from stargan_dist.errors import UserError

SUBSTITUTES = 10  # so many are drawn for one image before the run ends after all


class Loaded(NamedTuple):
    """What a loader brings: a batch, and the samples that were replaced in it."""

    batch: Batch
    faults: list[Fault]


class Slots(Dataset[Loaded]):
    """What each slot of training holds, as a function of the seed and the slot's number alone.

    Args:
        fast: decode plain JPEGs the fast way (`transforms.load_augmented`).
        skip: replace samples that cannot be read by others of their domain, instead of failing.
            The replacement is a function of the seed and the slot, too.
    """

    def __init__(
        self,
        reader: ShardReader,
        seed: int,
        image_size: int,
        latent_dim: int,
        *,
        fast: bool = False,
        skip: bool = False,
    ) -> None:
        self.reader, self.seed = reader, seed
        self.image_size, self.latent_dim = image_size, latent_dim
        self.fast, self.skip = fast, skip
        self.order = Order(reader.index.counts(reader.split), seed)

    def _image(self, location: Location, role: str, slot: int) -> Tensor:
        """Raises UserError if the sample cannot be read or decoded."""
        sample = self.reader.read(location)
        rng = generator(self.seed, "augment", role, slot)
        try:
            return torch.from_numpy(
                transforms.load_augmented(sample.image, self.image_size, rng, fast=self.fast)
            )
        except UserError as error:
            raise UserError(
                f"sample {sample.key} of shard {self.reader.shard(location).name} in "
                f"{self.reader.url}: {error}; build the set again"
            ) from error

    def _readable(
        self, location: Location, role: str, slot: int, taken: set[Location], faults: list[Fault]
    ) -> tuple[Tensor, Location]:
        """The image at a location, or else of the first substitute that can be read.

        `taken` are images that a substitute must not be.
        """
        try:
            return self._image(location, role, slot), location
        except UserError as error:
            if not self.skip:
                remedy = "or train without it (--data.on_bad_shard skip)"
                raise UserError(f"{error}, {remedy}") from error
            faults.append(Fault(self.reader.shard(location).name, str(error)))
        for place in self.order.substitutes(location.domain, SUBSTITUTES, role, slot):
            if place not in taken | {location}:
                try:
                    return self._image(place, role, slot), place
                except UserError as error:
                    faults.append(Fault(self.reader.shard(place).name, str(error)))
        raise UserError(f"{faults[-1].reason}; all substitutes for it failed as well")

    def __getitem__(self, slot: int) -> Loaded:
        source = self.order.source(slot)
        ref, ref2 = self.order.references(slot)
        latents = generator(self.seed, "latent", slot).standard_normal((2, self.latent_dim))
        z, z2 = torch.from_numpy(latents.astype(np.float32))
        faults: list[Fault] = []
        x, _ = self._readable(source, "source", slot, set(), faults)
        x_ref, ref = self._readable(ref, "reference", slot, {ref2}, faults)
        x_ref2, _ = self._readable(ref2, "reference2", slot, {ref}, faults)
        y, y_trg = torch.tensor(source.domain), torch.tensor(ref.domain)
        mix = torch.tensor(generator(self.seed, "mix", slot).random(), dtype=torch.float32)
        return Loaded(Batch(x, y, x_ref, x_ref2, y_trg, z, z2, mix), faults)


def samples_of(slots: Slots, batch_size: int, step: int) -> list[dict[str, Any]]:
    """What a global batch is made of, for a person: keys of its images, by role. `step` counts
    the iterations done before it."""

    def key(location: Location) -> str:
        try:
            return slots.reader.read(location).key
        except UserError as error:
            return str(error)

    rows = []
    for slot in range(step * batch_size, (step + 1) * batch_size):
        x_ref, x_ref2 = slots.order.references(slot)
        roles = {"x": slots.order.source(slot), "x_ref": x_ref, "x_ref2": x_ref2}
        rows.append({"slot": slot} | {role: key(location) for role, location in roles.items()})
    return rows


def _collate(slots: list[Loaded]) -> Loaded:
    batch = default_collate([slot.batch for slot in slots])
    return Loaded(batch, [fault for slot in slots for fault in slot.faults])


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


def training_loader(
    slots: Slots,
    steps: range,
    batch_size: int,
    *,
    rank: int,
    world_size: int,
    workers: int,
    start_method: str = "fork",
    pin_memory: bool = False,
) -> DataLoader[Loaded]:
    """This rank's batches of the given steps, in order, whatever the number of workers."""
    return open_loader(
        slots,
        RankSlots(steps, batch_size, rank, world_size),
        _collate,
        workers=workers,
        start_method=start_method,
        pin_memory=pin_memory,
    )


def batches(loader: DataLoader[Loaded], skipped: Skipped) -> Generator[Batch, None, None]:
    """Iterate a loader, as `workers.iterate` does.

    What was replaced is added to `skipped` as its batch is handed out, not when it is prefetched.
    """
    with closing(iterate(loader)) as stream:
        for batch, faults in stream:
            for fault in faults:
                skipped.add(*fault)
            yield batch
