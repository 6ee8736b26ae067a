"""The data sets of a run, one or several: their readers, and the labels of their samples."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stargan_dist.config import DataConfig, SourceConfig
from stargan_dist.data.index import Index
from stargan_dist.data.labels import Labels, LabelSpace
from stargan_dist.data.order import Location
from stargan_dist.data.reader import (
    LoadedSplit,
    Sample,
    ShardReader,
    check_split,
    load_split,
    open_readers,
)
from stargan_dist.errors import UserError


@dataclass(frozen=True)
class DataSources:
    """One split of each data set, and what they are labelled with. Picklable."""

    readers: Sequence[ShardReader]
    labels: Labels

    @property
    def domains(self) -> list[str]:
        """Names of all that labels tell: domains, categories, attributes."""
        return self.labels.names

    @property
    def images(self) -> int:
        """How many there are in all."""
        return sum(sum(counts) for r in self.readers for counts in r.index.counts(r.split))

    @property
    def fingerprint(self) -> str:
        """A name for the samples and their order; of a single set without a name, its index's."""
        prints = [reader.index.fingerprint for reader in self.readers]
        names = [space.name for space in self.labels.spaces]
        if names == [""]:
            return prints[0]
        text = json.dumps([*zip(names, prints, strict=True)])
        return hashlib.sha256(text.encode()).hexdigest()

    def label(self, number: int, location: Location, sample: Sample | None = None) -> Tensor:
        """The label of a sample of set `number`: int64 () or float32 (`Labels.size`,).

        The sample is read unless it is given; labels that domains tell need none.

        Raises:
            UserError: it cannot be read, or its JSON does not tell what the labels need.
        """
        if self.labels.by_domain:
            return torch.tensor(location.domain)
        reader, space = self.readers[number], self.labels.spaces[number]
        if space.labels_are_domains:
            own = space.encode({}, reader.index.domains[location.domain])
            return torch.from_numpy(self.labels.vector(number, own))
        sample = sample or reader.read(location)
        try:
            attributes = sample.facts.get("attributes", {})
            own = space.encode(attributes, sample.facts["domain"])
        except UserError as error:
            raise UserError(
                f"sample {sample.key} of shard {reader.shard(location).name} in {reader.url}: "
                f"{error}; name other attributes in data.sources, or build the set again"
            ) from error
        return torch.from_numpy(self.labels.vector(number, own))

    def check(self, *, references: bool) -> None:
        """Look for what training on these sets would fail at.

        Raises:
            UserError: a set has nothing to translate to, or too few images.
        """
        for reader, space in zip(self.readers, self.labels.spaces, strict=True):
            if len(space.columns) < 2 and not space.binary:
                raise UserError(f"{reader.url} has one domain: there is nothing to translate to")
            check_split(reader.index, reader.split, 2 if references else 1, reader.url)

    def check_labels(self) -> None:
        """Raises UserError if the first sample of a set does not tell what the labels need."""
        for number, reader in enumerate(self.readers):
            self.label(number, reader.locate(0, 0))


def open_sources(config: DataConfig, split: str) -> DataSources:
    """The data sets as the configuration names them.

    Raises:
        UserError: there are no shards; the cache is too small to be of use, or not writable.
    """
    readers = open_readers(config, split)
    spaces = map(_space, config.sets, config.sets.values(), (reader.index for reader in readers))
    return DataSources(readers, Labels(tuple(spaces)))


def _space(name: str, source: SourceConfig, index: Index) -> LabelSpace:
    exclusive = tuple(tuple(group) for group in source.exclusive)
    if source.binary:
        return LabelSpace(name, tuple(source.binary), binary=True, exclusive=exclusive)
    return LabelSpace(name, tuple(source.categories or index.domains), key=source.category)


def load_labelled_images(
    sets: DataSources, size: int, *, first: int = 0, per_domain: int, domains: int | None = None
) -> LoadedSplit:
    """As `load_split`, of every set, one after the other. Labels are as they travel.

    Images of several sets, or with other labels than domains, have labels float (N,
    `Labels.size`), and `domains` are the names of all that labels tell.
    """
    if sets.labels.by_domain:
        (reader,) = sets.readers
        return load_split(reader, size, first=first, per_domain=per_domain, domains=domains)
    images, labels, paths = [], [], []
    for number, reader in enumerate(sets.readers):
        split = load_split(reader, size, first=first, per_domain=per_domain, domains=domains)
        images.append(split.images)
        paths += split.paths
        for domain in range(len(split.domains)):
            for i in range(first, first + per_domain):
                location = reader.locate(domain, i % reader.size(domain))
                labels.append(sets.label(number, location))
    return LoadedSplit(torch.cat(images), torch.stack(labels), paths, sets.domains)
