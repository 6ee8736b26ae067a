"""Slots to batches: what each slot of training holds, and who loads it.

The order is known beforehand (data/order.py), and any sample can be read by itself
(data/reader.py). So which worker of which rank loads a slot has no influence on what it holds.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from stargan_dist.data import transforms
from stargan_dist.data.batch import Batch
from stargan_dist.data.order import Location, Order, data_source_seed, place, seeded_rng, targets
from stargan_dist.data.reader import Sample, ShardReader
from stargan_dist.data.skipped import Fault, SkippedSamples
from stargan_dist.data.sources import DataSources
from stargan_dist.data.workers import iterate, open_loader
from stargan_dist.errors import UserError

SUBSTITUTES = 10  # so many are drawn for one image before the run ends after all

T = TypeVar("T")


class Loaded(NamedTuple):
    """What a loader brings: a batch, and the samples that were replaced in it."""

    batch: Batch
    faults: list[Fault]


class Images:
    """The images of one data set as training sees them: augmented, and replaced where they cannot
    be read.

    Args:
        number: which of the sets.
        seed: of augmentations.
        crops, fast, skip: see `Slots`.
    """

    def __init__(
        self,
        sets: DataSources,
        number: int,
        seed: int,
        image_size: int,
        *,
        crops: float,
        fast: bool,
        skip: bool,
    ) -> None:
        self.sets, self.number, self.reader = sets, number, sets.readers[number]
        self.seed, self.image_size, self.crops = seed, image_size, crops
        self.fast, self.skip = fast, skip
        counts = self.reader.index.counts(self.reader.split)
        self.order = Order(counts, data_source_seed(seed, number))

    def image(self, location: Location, role: str, slot: int) -> Tensor:
        """Raises UserError if the sample cannot be read or decoded."""
        return self._image(self.reader.read(location), location, role, slot)

    def _image(self, sample: Sample, location: Location, role: str, slot: int) -> Tensor:
        rng = seeded_rng(self.seed, "augment", role, slot)
        try:
            return torch.from_numpy(
                transforms.load_augmented(
                    sample.image, self.image_size, rng, fast=self.fast, crops=self.crops
                )
            )
        except UserError as error:
            raise UserError(
                f"sample {sample.key} of shard {self.reader.shard(location).name} in "
                f"{self.reader.url}: {error}; build the set again"
            ) from error

    def labelled(self, location: Location, role: str, slot: int) -> tuple[Tensor, Tensor]:
        """The image and its label. Raises UserError as `image`, or if it has no label."""
        sample = self.reader.read(location)
        label = self.sets.label(self.number, location, sample)
        return self._image(sample, location, role, slot), label

    def label(self, location: Location, role: str, slot: int) -> Tensor:
        """The label alone. Nothing is decoded, and nothing read where the domain tells it, as it
        does of a substitute; else one that may be replaced is looked at: its substitute's counts.
        """
        if self.skip and not self.sets.labels.spaces[self.number].labels_are_domains:
            return self.labelled(location, role, slot)[1]
        return self.sets.label(self.number, location)

    def readable(
        self,
        load: Callable[[Location, str, int], T],
        location: Location,
        role: str,
        slot: int,
        taken: set[Location],
        faults: list[Fault],
    ) -> tuple[T, Location]:
        """What `load` makes of a location, or else of the first substitute that can be read.

        `taken` are images that a substitute must not be.
        """
        try:
            return load(location, role, slot), location
        except UserError as error:
            if not self.skip:
                remedy = "or train without it (--data.on_bad_shard skip)"
                raise UserError(f"{error}, {remedy}") from error
            faults.append(Fault(self.reader.shard(location).name, str(error)))
        for other in self.order.substitutes(location.domain, SUBSTITUTES, role, slot):
            if other not in taken | {location}:
                try:
                    return load(other, role, slot), other
                except UserError as error:
                    faults.append(Fault(self.reader.shard(other).name, str(error)))
        raise UserError(f"{faults[-1].reason}; all substitutes for it failed as well")


class Slots(Dataset[Loaded]):
    """What each slot of training holds, as a function of the seed and the slot's number alone.

    Args:
        sets: the data sets. Steps take one after the other.
        batch_size: of the global batch, so many slots make a step.
        references: load images that guide; else there are none, and y_trg is a domain.
        permuted: instead, y_trg is the label of the source of another slot of the same step.
        crops: the share of images of which a random part is taken.
        fast: decode plain JPEGs the fast way (`transforms.load_augmented`).
        skip: replace samples that cannot be read by others of their domain, instead of failing.
            The replacement is a function of the seed and the slot, too.
    """

    def __init__(
        self,
        sets: DataSources,
        seed: int,
        image_size: int,
        latent_dim: int,
        batch_size: int,
        *,
        references: bool = True,
        permuted: bool = False,
        crops: float = transforms.CROPS,
        fast: bool = False,
        skip: bool = False,
    ) -> None:
        assert not (references and permuted), "references are of a domain of their own"
        assert permuted or sets.labels.by_domain, "labels that are no domains can only be permuted"
        self.seed, self.latent_dim, self.batch_size = seed, latent_dim, batch_size
        self.with_references, self.permuted = references, permuted
        self.images = [
            Images(sets, number, seed, image_size, crops=crops, fast=fast, skip=skip)
            for number in range(len(sets.readers))
        ]

    def place(self, slot: int) -> tuple[Images, int]:
        """The data set that a slot is of, and the slot's number in that set's own order."""
        number, own = place(slot, self.batch_size, len(self.images))
        return self.images[number], own

    def source(self, slot: int) -> Location:
        """In the set that the slot is of."""
        images, own = self.place(slot)
        return images.order.source(own)

    def references(self, slot: int) -> tuple[Location, Location]:
        """In the set that the slot is of."""
        images, own = self.place(slot)
        return images.order.references(own)

    def __getitem__(self, slot: int) -> Loaded:
        images, _ = self.place(slot)
        latents = seeded_rng(self.seed, "latent", slot).standard_normal((2, self.latent_dim))
        z, z2 = torch.from_numpy(latents.astype(np.float32))
        mix = torch.tensor(seeded_rng(self.seed, "mix", slot).random(), dtype=torch.float32)
        faults: list[Fault] = []
        (x, y), _ = images.readable(
            images.labelled, self.source(slot), "source", slot, set(), faults
        )
        x_ref, x_ref2 = self._references(slot, faults) if self.with_references else (None, None)
        return Loaded(Batch(x, y, x_ref, x_ref2, self._target(slot), z, z2, mix), faults)

    def _references(self, slot: int, faults: list[Fault]) -> tuple[Tensor, Tensor]:
        images, _ = self.place(slot)
        ref, ref2 = self.references(slot)
        x_ref, ref = images.readable(images.image, ref, "reference", slot, {ref2}, faults)
        x_ref2, _ = images.readable(images.image, ref2, "reference2", slot, {ref}, faults)
        return x_ref, x_ref2

    def _target(self, slot: int) -> Tensor:
        """y_trg: a domain, or the label of the source of another slot of the step."""
        if not self.permuted:
            return torch.tensor(self.references(slot)[0].domain)
        step, i = divmod(slot, self.batch_size)
        other = step * self.batch_size + targets(self.seed, step, self.batch_size)[i]
        images, _ = self.place(slot)
        # A fault is counted where the image itself is loaded.
        label, _ = images.readable(images.label, self.source(other), "source", other, set(), [])
        return label


def describe_step(slots: Slots, step: int) -> list[dict[str, Any]]:
    """What a global batch is made of, for a person: keys of its images, by role. `step` counts
    the iterations done before it."""
    rows = []
    for slot in range(step * slots.batch_size, (step + 1) * slots.batch_size):
        roles = {"x": slots.source(slot)}
        if slots.with_references:
            roles["x_ref"], roles["x_ref2"] = slots.references(slot)
        images, _ = slots.place(slot)
        keys = {role: _key(images.reader, location) for role, location in roles.items()}
        rows.append({"slot": slot} | keys)
    return rows


def _key(reader: ShardReader, location: Location) -> str:
    try:
        return reader.read(location).key
    except UserError as error:
        return str(error)


def _collate(slots: list[Loaded]) -> Loaded:
    fields = zip(*(slot.batch for slot in slots), strict=True)
    batch = Batch(*(None if row[0] is None else default_collate([*row]) for row in fields))  # type: ignore[arg-type]
    return Loaded(batch, [fault for slot in slots for fault in slot.faults])


class RankSampler(Sampler[list[int]]):
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
        RankSampler(steps, slots.batch_size, rank, world_size),
        _collate,
        workers=workers,
        start_method=start_method,
        pin_memory=pin_memory,
    )


def batches(loader: DataLoader[Loaded], skipped: SkippedSamples) -> Generator[Batch, None, None]:
    """Iterate a loader, as `workers.iterate` does.

    What was replaced is added to `skipped` as its batch is handed out, not when it is prefetched.
    """
    with closing(iterate(loader)) as stream:
        for batch, faults in stream:
            for fault in faults:
                skipped.add(*fault)
            yield batch
