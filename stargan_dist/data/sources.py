"""The data sources of a run, one or several: their readers, and the labels of their samples."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stargan_dist.config import DataConfig, SourceConfig
from stargan_dist.data.fetch import fetch_in_order
from stargan_dist.data.index import Index
from stargan_dist.data.labels import Labels, LabelSpace
from stargan_dist.data.order import Location
from stargan_dist.data.reader import ShardReader, check_split, open_readers
from stargan_dist.data.sample import Sample
from stargan_dist.data.split import LoadedSplit, load_split
from stargan_dist.errors import UserError


@dataclass(frozen=True)
class DataSources:
    """One split of each data source, and the labels of all sources. Picklable."""

    readers: Sequence[ShardReader]
    labels: Labels

    @property
    def domains(self) -> list[str]:
        """Names of all label columns: domains, categories, attributes."""
        return self.labels.names

    @property
    def num_images(self) -> int:
        """Number of images of all sources."""
        return sum(sum(counts) for r in self.readers for counts in r.index.counts(r.split))

    @property
    def fingerprint(self) -> str:
        """Hash that identifies the samples and their order.

        For a single source without a name, it is the fingerprint of the source's index.
        """
        fingerprints = [reader.index.fingerprint for reader in self.readers]
        names = [space.name for space in self.labels.spaces]
        if names == [""]:
            return fingerprints[0]
        text = json.dumps([*zip(names, fingerprints, strict=True)])
        return hashlib.sha256(text.encode()).hexdigest()

    def label(self, source_index: int, location: Location, sample: Sample | None = None) -> Tensor:
        """Return the label of a sample: int64 () or float32 (`Labels.vector_dim`,).

        Args:
            source_index: data source of the sample.
            location: location of the sample in that source.
            sample: the sample, if it was read already. Otherwise it is read here, unless its
                domain determines its label.

        Raises:
            UserError: the sample cannot be read, or its JSON lacks a required attribute.
        """
        if self.labels.by_domain:
            return torch.tensor(location.domain)
        reader, space = self.readers[source_index], self.labels.spaces[source_index]
        if space.labels_are_domains:
            columns = space.encode({}, reader.index.domains[location.domain])
            return torch.from_numpy(self.labels.vector(source_index, columns))
        sample = sample or reader.read(location)
        try:
            columns = space.encode(sample.metadata.attributes, sample.metadata.domain)
        except UserError as error:
            raise UserError(
                f"sample {sample.key} of shard {reader.shard(location).name} in {reader.url}: "
                f"{error}; name other attributes in data.sources, or rebuild the dataset"
            ) from error
        return torch.from_numpy(self.labels.vector(source_index, columns))

    def labels_in_order(self, source_index: int, locations: Sequence[Location]) -> list[Tensor]:
        """Return the label of each sample, as `label` does."""
        is_read = not self.labels.spaces[source_index].labels_are_domains
        reader = self.readers[source_index]
        in_order = fetch_in_order(reader, locations) if is_read else locations
        return [self.label(source_index, location) for location in in_order]

    def check(self, *, with_references: bool) -> None:
        """Check that training on these sources is possible.

        Args:
            with_references: require two images per domain, as references do, instead of one.

        Raises:
            UserError: a source has nothing to translate to, or too few images.
        """
        for reader, space in zip(self.readers, self.labels.spaces, strict=True):
            if len(space.columns) < 2 and not space.binary:
                raise UserError(
                    f"{reader.url} has one domain, so there is nothing to translate to: "
                    "add another domain and rebuild the shards"
                )
            check_split(reader.index, reader.split, 2 if with_references else 1, reader.url)

    def check_labels(self) -> None:
        """Check the label of the first sample of each source.

        Raises:
            UserError: it cannot be read, or its JSON lacks a required attribute.
        """
        for source_index, reader in enumerate(self.readers):
            self.label(source_index, reader.locate(0, 0))


def open_sources(config: DataConfig, split: str) -> DataSources:
    """Open a split of each configured data source.

    Raises:
        UserError: there are no shards; the cache is too small to be useful, or not writable.
    """
    readers = open_readers(config, split)
    indexes = (reader.index for reader in readers)
    spaces = map(_label_space, config.all_sources, config.all_sources.values(), indexes)
    return DataSources(readers, Labels(tuple(spaces)))


def _label_space(name: str, source: SourceConfig, index: Index) -> LabelSpace:
    exclusive = tuple(tuple(group) for group in source.exclusive)
    if source.binary:
        return LabelSpace(name, tuple(source.binary), binary=True, exclusive=exclusive)
    return LabelSpace(name, tuple(source.categories or index.domains), key=source.category)


def load_labelled_images(
    sources: DataSources,
    size: int,
    *,
    first: int = 0,
    per_domain: int,
    domains: int | None = None,
    replace_unreadable: bool = False,
) -> LoadedSplit:
    """Load images of each domain of each source, source after source; see `load_split`.

    If the labels are not the domains of a single source, the result has labels float (N,
    `Labels.vector_dim`), and its `domains` are the names of all label columns.

    Raises:
        UserError: an image cannot be read or decoded, or has no label.
    """
    splits = [
        load_split(
            reader,
            size,
            first=first,
            per_domain=per_domain,
            domains=domains,
            replace_unreadable=replace_unreadable,
        )
        for reader in sources.readers
    ]
    if sources.labels.by_domain:
        return splits[0]
    labels = [
        label
        for source_index, split in enumerate(splits)
        for label in sources.labels_in_order(source_index, split.locations)
    ]
    return LoadedSplit(
        torch.cat([split.images for split in splits]),
        torch.stack(labels),
        [path for split in splits for path in split.paths],
        sources.domains,
        [location for split in splits for location in split.locations],
    )
