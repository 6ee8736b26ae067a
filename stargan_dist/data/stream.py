"""The contents of each slot of training.

The order is known beforehand (data/order.py), and any sample can be read by itself
(data/reader.py). The contents of a slot are therefore independent of the rank and the worker that
load it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stargan_dist import storage
from stargan_dist.data import transforms
from stargan_dist.data.batch import Batch
from stargan_dist.data.cache import CacheFault
from stargan_dist.data.index import Shard
from stargan_dist.data.order import (
    PAIR,
    Location,
    Order,
    data_source_of_slot,
    data_source_seed,
    seeded_rng,
    target_permutation,
    turn_of,
)
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.sample import Sample
from stargan_dist.data.skipped import Fault
from stargan_dist.data.sources import DataSources
from stargan_dist.errors import UserError, explained

DRAWN, PERMUTED, OTHER = "drawn", "permuted", "other"  # keys of TARGETS
MAX_SUBSTITUTES = 10  # substitutes tried for one image before the run stops

T = TypeVar("T")


class LoaderOutput(NamedTuple):
    """Output of a dataset or loader: a slot or a batch, and how it was loaded.

    Attributes:
        faults: replaced samples.
        traffic: reads of the process since its previous batch.
        ahead_bytes: estimated size of the samples of later batches that were under way or fetched.
    """

    batch: Batch
    faults: list[Fault]
    traffic: storage.Traffic = storage.Traffic()
    ahead_bytes: int = 0


class AugmentedImages:
    """The training images of one data source: augmented, and replaced if unreadable.

    Args:
        sources: all data sources of the run.
        source_index: the data source of these images.
        seed: seed of the run.
        image_size: in pixels. This and the following are as in `Slots`.
    """

    def __init__(
        self,
        sources: DataSources,
        source_index: int,
        seed: int,
        image_size: int,
        *,
        crop: transforms.Crop,
        fast_decoding: bool,
        replace_unreadable: bool,
    ) -> None:
        self.sources, self.source_index = sources, source_index
        self.reader = sources.readers[source_index]
        self.seed, self.image_size, self.crop = seed, image_size, crop
        self.fast_decoding, self.replace_unreadable = fast_decoding, replace_unreadable
        counts = self.reader.index.counts(self.reader.split)
        self.order = Order(counts, data_source_seed(seed, source_index))

    def load_image(self, location: Location, role: str, slot: int) -> Tensor:
        """Return the augmented image, uint8 (3, image_size, image_size).

        Raises:
            UserError: the sample cannot be read or decoded.
        """
        return self._augment(self.reader.read(location), location, role, slot)

    def _augment(self, sample: Sample, location: Location, role: str, slot: int) -> Tensor:
        rng = seeded_rng(self.seed, "augment", role, slot)
        try:
            return torch.from_numpy(
                transforms.load_augmented(
                    sample.image,
                    self.image_size,
                    rng,
                    fast_decoding=self.fast_decoding,
                    crop=self.crop,
                )
            )
        except UserError as error:
            raise UserError(
                f"sample {sample.key} of shard {self.reader.shard(location).name} in "
                f"{self.reader.url}: {error}; rebuild the dataset"
            ) from error

    def load_labelled(self, location: Location, role: str, slot: int) -> tuple[Tensor, Tensor]:
        """Return the augmented image and its label.

        Raises:
            UserError: the sample cannot be read or decoded, or has no label.
        """
        sample = self.reader.read(location)
        label = self.sources.label(self.source_index, location, sample)
        return self._augment(sample, location, role, slot), label

    def load_label(self, location: Location, role: str, slot: int) -> Tensor:
        """Return the label alone; nothing is read where the domain determines it.

        A substitute is of the same domain, so its domain's label is right for it. Any other label
        must be that of the image that is loaded: where unreadable samples are replaced, the image
        is decoded here too, so that it is replaced under the same conditions.

        Raises:
            UserError: the sample cannot be read or decoded, or has no label.
        """
        if self.replace_unreadable and not self.labels_are_domains():
            return self.load_labelled(location, role, slot)[1]
        return self.sources.label(self.source_index, location)

    def labels_are_domains(self) -> bool:
        """Return True if the domain of an image determines its label."""
        return self.sources.labels.spaces[self.source_index].labels_are_domains

    def load_or_substitute(
        self,
        load: Callable[[Location, str, int], T],
        location: Location,
        role: str,
        slot: int,
        excluded: set[Location],
        faults: list[Fault],
    ) -> tuple[T, Location]:
        """Load a sample, or else the first substitute that can be read.

        Args:
            load: method that loads a sample from its location, role and slot.
            location: the sample.
            role: role of the sample in its slot.
            slot: number of the slot.
            excluded: locations that must not be substitutes.
            faults: receives the samples that could not be read.

        Returns:
            The result of `load`, and the location that was loaded.

        Raises:
            UserError: the sample cannot be read, and unreadable samples are not replaced; or no
                substitute can be read.
        """
        try:
            return load(location, role, slot), location
        except CacheFault:  # not a fault of the sample
            raise
        except UserError as error:
            if not self.replace_unreadable:
                remedy = "or train without it (--data.on_bad_shard skip)"
                raise explained(f"{error}, {remedy}", error) from error
            last: UserError = error
            faults.append(Fault(self.reader.shard(location).name, str(error)))
        for substitute in self.order.substitutes(location.domain, MAX_SUBSTITUTES, role, slot):
            if substitute not in excluded | {location}:
                try:
                    return load(substitute, role, slot), substitute
                except CacheFault:
                    raise
                except UserError as error:
                    last = error
                    faults.append(Fault(self.reader.shard(substitute).name, str(error)))
        raise explained(f"{last}; all substitutes for it failed as well", last)


class Slots(Dataset[LoaderOutput]):
    """The contents of each slot of training, a function of the seed and the slot's number alone.

    Args:
        sources: the data sources. Steps alternate between them.
        seed: seed of the run.
        image_size: width and height of the images, in pixels.
        latent_dim: length of a latent.
        batch_size: size of the global batch: the number of slots of a step.
        reference_turns: whether the steps of each turn (order.py) load reference images, whose
            domain is y_trg.
        targets: choice of y_trg, a key of `TARGETS`.
        crop: random crop of an image.
        fast_decoding: decode plain JPEGs faster (`transforms.load_augmented`).
        replace_unreadable: replace samples that cannot be read by others of their domain, instead
            of failing. The substitutes are functions of the seed and the slot, too.
    """

    def __init__(
        self,
        sources: DataSources,
        seed: int,
        image_size: int,
        latent_dim: int,
        batch_size: int,
        *,
        reference_turns: Sequence[bool] = (True,),
        targets: str = DRAWN,
        crop: transforms.Crop = transforms.RANDOM_CROP,
        fast_decoding: bool = False,
        replace_unreadable: bool = False,
    ) -> None:
        with_references = any(reference_turns)
        assert not with_references or targets == DRAWN, "references have a domain of their own"
        assert targets == PERMUTED or sources.labels.by_domain, (
            "labels that are not domains can only be permuted"
        )
        assert targets != OTHER or sources.labels.num_labels == PAIR
        self.seed, self.latent_dim, self.batch_size = seed, latent_dim, batch_size
        self.reference_turns, self.targets = (*reference_turns,), targets
        self.readers = sources.readers
        self.images = [
            AugmentedImages(
                sources,
                source_index,
                seed,
                image_size,
                crop=crop,
                fast_decoding=fast_decoding,
                replace_unreadable=replace_unreadable,
            )
            for source_index in range(len(sources.readers))
        ]

    def images_of_slot(self, slot: int) -> tuple[AugmentedImages, int]:
        """Return the images of a slot's data source, and the slot's number in their order."""
        source_index, source_slot = data_source_of_slot(slot, self.batch_size, len(self.images))
        return self.images[source_index], source_slot

    def source(self, slot: int) -> Location:
        """Return the source image of a slot, a location in the slot's data source."""
        images, source_slot = self.images_of_slot(slot)
        return images.order.source(source_slot)

    def references(self, slot: int) -> tuple[Location, Location]:
        """Return the references of a slot, locations in the slot's data source."""
        images, source_slot = self.images_of_slot(slot)
        return images.order.references(source_slot)

    def loads_references(self, slot: int) -> bool:
        """Return True if the step of a slot has reference images."""
        step_of_source = slot // self.batch_size // len(self.images)
        return self.reference_turns[turn_of(step_of_source, len(self.reference_turns))]

    def samples(self, slots: Iterable[int]) -> Iterator[tuple[ShardReader, Location]]:
        """Yield the samples that loading some slots reads, if all of them can be read."""
        for slot in slots:
            images, _ = self.images_of_slot(slot)
            yield images.reader, self.source(slot)
            if self.loads_references(slot):
                yield from ((images.reader, reference) for reference in self.references(slot))
            if self.targets == PERMUTED and not images.labels_are_domains():
                yield images.reader, self.source(self._target_slot(slot))

    def next_shards(self, slot: int) -> list[tuple[ShardReader, Shard]]:
        """Return all shards in the order in which they are read next, from a slot on."""
        step, i = divmod(slot, self.batch_size)
        source_slot = step // len(self.images) * self.batch_size + i
        shards = []
        for images in self.images:
            uses = images.order.next_uses(source_slot, with_references=any(self.reference_turns))
            for domain, slots in enumerate(uses):
                for shard, use in enumerate(slots.tolist()):
                    shards.append(
                        (use, images.reader, images.reader.shard(Location(domain, shard, 0)))
                    )
        return [(reader, shard) for _, reader, shard in sorted(shards, key=itemgetter(0))]

    def __getitem__(self, slot: int) -> LoaderOutput:
        images, _ = self.images_of_slot(slot)
        latents = seeded_rng(self.seed, "latent", slot).standard_normal((2, self.latent_dim))
        z, z2 = torch.from_numpy(latents.astype(np.float32))
        mix = torch.tensor(seeded_rng(self.seed, "mix", slot).random(), dtype=torch.float32)
        faults: list[Fault] = []
        (x, y), _ = images.load_or_substitute(
            images.load_labelled, self.source(slot), "source", slot, set(), faults
        )
        x_ref, x_ref2 = (
            self._load_references(slot, faults) if self.loads_references(slot) else (None, None)
        )
        return LoaderOutput(
            Batch(x, y, x_ref, x_ref2, TARGETS[self.targets](self, slot), z, z2, mix), faults
        )

    def _load_references(self, slot: int, faults: list[Fault]) -> tuple[Tensor, Tensor]:
        images, _ = self.images_of_slot(slot)
        ref, ref2 = self.references(slot)
        x_ref, ref = images.load_or_substitute(
            images.load_image, ref, "reference", slot, {ref2}, faults
        )
        x_ref2, _ = images.load_or_substitute(
            images.load_image, ref2, "reference2", slot, {ref}, faults
        )
        return x_ref, x_ref2

    def drawn_target(self, slot: int) -> Tensor:
        """Return the domain of the slot's references, or the one that they would have."""
        return torch.tensor(self.references(slot)[0].domain)

    def other_target(self, slot: int) -> Tensor:
        """Return the domain, of two, that the slot's source is not of."""
        return torch.tensor(PAIR - 1 - self.source(slot).domain)

    def permuted_target(self, slot: int) -> Tensor:
        """Return the label of the source of another slot of the step."""
        target_slot = self._target_slot(slot)
        images, _ = self.images_of_slot(slot)
        # Faults are not counted here, but where the image itself is loaded.
        label, _ = images.load_or_substitute(
            images.load_label, self.source(target_slot), "source", target_slot, set(), []
        )
        return label

    def _target_slot(self, slot: int) -> int:
        """Return the slot of the same step whose source has the target label of a slot."""
        step, i = divmod(slot, self.batch_size)
        permutation = target_permutation(self.seed, step, self.batch_size)
        return step * self.batch_size + permutation[i]


# The choice of a slot's target label.
TARGETS: dict[str, Callable[[Slots, int], Tensor]] = {
    DRAWN: Slots.drawn_target,
    PERMUTED: Slots.permuted_target,
    OTHER: Slots.other_target,
}


def describe_step(slots: Slots, step: int) -> list[dict[str, Any]]:
    """Return the keys of a global batch's images by role, for people: a dictionary for each slot.

    Args:
        slots: the training slots.
        step: number of iterations done before it.
    """
    descriptions = []
    for slot in range(step * slots.batch_size, (step + 1) * slots.batch_size):
        roles = {"x": slots.source(slot)}
        if slots.loads_references(slot):
            roles["x_ref"], roles["x_ref2"] = slots.references(slot)
        images, _ = slots.images_of_slot(slot)
        keys = {role: _key(images.reader, location) for role, location in roles.items()}
        descriptions.append({"slot": slot} | keys)
    return descriptions


def _key(reader: ShardReader, location: Location) -> str:
    try:
        return reader.read(location).key
    except UserError as error:
        return str(error)
