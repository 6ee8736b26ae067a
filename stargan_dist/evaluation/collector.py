"""Collection of features from real images and translations, over all ranks.

Each rank processes its share of the images, and sums are reduced over the ranks. Only data of
bounded size is gathered: features for the kernel distance, an image grid, conditioning vectors.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.console.progress import ProgressBar, progress_bar
from stargan_dist.data.batch import to_uint8, to_unit
from stargan_dist.data.images import ImageSet, NumberedImages, load_images, rank_batches
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.sources import open_sources
from stargan_dist.distributed.world import World
from stargan_dist.evaluation.metrics.statistics import Statistics
from stargan_dist.evaluation.protocols import load_metrics
from stargan_dist.evaluation.tensor_cache import TensorCache
from stargan_dist.inference.model import TrainedModel

# Rounding depends on the size of a batch (not on its other images), and metrics must not depend on
# the distribution of images over ranks. Networks therefore always process batches of one size: real
# images, or the outputs of one source or several.
BATCH_SIZE = 10
GRID_SOURCES = 4  # sources in the image grid of a task

# Maps the positions of sources in their set to the conditioning (B·n, conditioning_dim) of their
# outputs.
Condition = Callable[[Sequence[int]], Tensor]
# Maps outputs (BATCH_SIZE, 3, H, H) in [-1, 1] to a number for each of their sources, (B,).
Rate = Callable[[Tensor], Tensor]

T = TypeVar("T")


class Stopped(Exception):
    """Raised when the evaluation was asked to stop."""


class RealImages(NamedTuple):
    """A set of real images that the cache and messages identify.

    Attributes:
        images: the images.
        name: the name of their label.
        key: everything that determines them, except the split.
    """

    images: ImageSet
    name: str
    key: dict[str, Any]


class Translation(NamedTuple):
    """How a task translates images.

    Attributes:
        sources: the images.
        outputs_per_source: outputs of each of them; a divisor of BATCH_SIZE.
        condition: returns the conditioning of the outputs.
        rate: rates sources by their outputs.
    """

    sources: ImageSet
    outputs_per_source: int
    condition: Condition
    rate: Rate


@dataclass
class Collected:
    """Sums over the images of a task.

    Attributes:
        statistics: of the images: real ones, or outputs.
        ratings: the sum of the ratings of all sources, or of all real images; None: not rated.
        nonfinite: the number of outputs with a value that is not finite.
        grid_rows: by the position of a source, it and its outputs, uint8 (1 + n, 3, H, H).
    """

    statistics: Statistics
    ratings: Tensor | None = None
    nonfinite: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    grid_rows: dict[int, Tensor] = field(default_factory=dict)


class Collector:
    """Applies the networks of one protocol to the images of a run's data sources.

    Args:
        config: the run's configuration.
        world: the processes that share the images.
        should_stop: called between batches; True ends the evaluation.

    Attributes:
        sources: the data sources, by split.
        metrics: the networks of the protocol.

    Raises:
        UserError: there are no shards, or the protocol's weights are not available.
    """

    def __init__(self, config: Config, world: World, should_stop: Callable[[], bool]) -> None:
        self.config, self.world, self.should_stop = config, world, should_stop
        self.image_size = config.model.image_size
        self.sources = {split: open_sources(config.data, split) for split in ("train", "val")}
        # All domains, also for a run of two of them: runs on one set are measured by one network.
        train = open_sources(replace(config.data, pair=[]), "train")
        self.metrics = load_metrics(config.evaluation, world, train, self.cache(train.readers[0]))

    def cache(self, reader: ShardReader) -> TensorCache:
        """Return the cache of what is computed from the images of a data source."""
        default_url = storage.join(reader.url, "statistics")
        return TensorCache(self.config.evaluation.cache or default_url)

    def real_statistics(self, real: RealImages) -> Statistics:
        """Return the statistics of a set of real images; they are complete on rank 0 only.

        They are computed once per dataset and cached.

        Raises:
            WorldError: an image cannot be read.
            Stopped: a rank was asked to stop.
        """
        key, cache = self._cache_key(real), self.cache(real.images.reader)
        cached = self.world.run_on_all_ranks(
            lambda: cache.load(key) if self.world.is_main else None
        )
        if self.world.all_reduce_max(cached is not None):
            return Statistics.from_dict(cached) if cached else self._empty_statistics(real.images)
        statistics = self.run_on_all_ranks(lambda: self._real_statistics_of_share(real))
        self._all_reduce(statistics)
        if self.world.is_main:
            cache.save(key, statistics.to_dict())
        return statistics

    def _cache_key(self, real: RealImages) -> dict[str, Any]:
        """Return everything that the statistics of real images depend on."""
        return {
            "what": "statistics of real images",
            "version": 1,
            "protocol": self.metrics.protocol,
            "network": self.metrics.extractors["features"]["sha256"],
            "image_size": self.image_size,
            "split": real.images.reader.split,
            **real.key,
        }

    def _empty_statistics(self, images: ImageSet, per_image: int = 1) -> Statistics:
        """Return statistics to be filled with `per_image` images for each image of a set."""
        total = len(images.numbers) * per_image
        return Statistics(self.metrics.num_features, total, self.world.device)

    def run_on_all_ranks(self, compute_share: Callable[[], T]) -> T:
        """Run this rank's share as `World.run_on_all_ranks` does.

        Raises:
            Stopped: on all ranks, if any rank was asked to stop.
        """
        result = self.world.run_on_all_ranks(compute_share)
        if self.world.all_reduce_max(self.should_stop()):
            raise Stopped
        return result

    def _all_reduce(self, statistics: Statistics, *sums: Tensor) -> None:
        """Combine the statistics of all ranks' shares, and further sums, in place."""
        self.world.all_reduce_sum_(*statistics.sums, *sums)
        statistics.samples = self.world.all_gather(statistics.sample)

    def share(self, images: ImageSet, batch_size: int) -> list[range]:
        """Return the positions of this rank's share of a set, in batches."""
        return rank_batches(len(images.numbers), batch_size, self.world.rank, self.world.size)

    def load(
        self, images: ImageSet, batches: Sequence[Sequence[int]]
    ) -> Generator[NumberedImages, None, None]:
        """Yield images of a set, on this rank's device, until asked to stop.

        Args:
            images: the set.
            batches: positions in the set.
        """
        loaded = load_images(
            images,
            self.image_size,
            batches,
            workers=self.config.data.workers,
            start_method=self.config.data.start_method,
            pin_memory=self.world.device.type == "cuda",
        )
        with closing(loaded):
            for first, batch in loaded:
                if self.should_stop():
                    return
                yield NumberedImages(first, batch.to(self.world.device, non_blocking=True))

    def _load_real_images(self, real: RealImages, title: str) -> Iterator[NumberedImages]:
        """Yield this rank's share of real images in batches of up to BATCH_SIZE, with progress."""
        batches = self.share(real.images, BATCH_SIZE)
        total, shown = sum(map(len, batches)), self.world.is_main
        with progress_bar(total, "images", description=title, shown=shown, brief=True) as progress:
            for first, images in self.load(real.images, batches):
                yield NumberedImages(first, images)
                progress.update(len(images))

    @torch.no_grad()
    def _real_statistics_of_share(self, real: RealImages) -> Statistics:
        """Compute the statistics of this rank's share of a set."""
        statistics = self._empty_statistics(real.images)
        title = f"real {real.name} ({real.images.reader.split})"
        for first, images in self._load_real_images(real, title):
            features = self.metrics.features(_pad(images, BATCH_SIZE))[: len(images)]
            statistics.update(features, first)
        return statistics

    def rate_real(self, real: RealImages, rate: Rate) -> Tensor:
        """Return the sum of the ratings of a set of real images, on every rank.

        Raises:
            WorldError: an image cannot be read.
            Stopped: a rank was asked to stop.
        """
        total = self.run_on_all_ranks(lambda: self._rate_share(real, rate))
        self.world.all_reduce_sum_(total)
        return total

    @torch.no_grad()
    def _rate_share(self, real: RealImages, rate: Rate) -> Tensor:
        """Return the sum of the ratings of this rank's share of a set."""
        total = _zero(torch.float64, self.world.device)
        for _, images in self._load_real_images(real, f"rating {real.name}"):
            total += rate(to_unit(_pad(images, BATCH_SIZE)))[: len(images)].double().sum()
        return total

    @torch.no_grad()
    def reference_conditioning(
        self, translator: TrainedModel, label: int, references: RealImages
    ) -> Tensor:
        """Encode images of a domain as references, each once.

        Each image is the reference of many outputs.

        Returns:
            Their conditioning (N, conditioning_dim), on the device of every rank.

        Raises:
            WorldError: an image cannot be read.
            Stopped: a rank was asked to stop.
        """
        conditioning = self.run_on_all_ranks(
            lambda: self._encode_share(translator, label, references)
        )
        return torch.cat(self.world.all_gather(conditioning)).to(self.world.device)

    def _encode_share(self, translator: TrainedModel, label: int, references: RealImages) -> Tensor:
        """Encode this rank's share of a domain's images, on the CPU."""
        conditioning = [torch.zeros(0, translator.conditioning_dim)]
        for _, images in self._load_real_images(references, f"styles of {references.name}"):
            y = torch.full((BATCH_SIZE,), label, device=images.device)
            x_ref = to_unit(_pad(images, BATCH_SIZE), translator.dtype)
            batch = translator.condition_on_references(x_ref, y)
            conditioning.append(batch[: len(images)].cpu())
        return torch.cat(conditioning)

    def translate(
        self, translator: TrainedModel, translation: Translation, progress: ProgressBar
    ) -> Collected:
        """Translate a set of images.

        Args:
            translator: the networks.
            translation: the images, and what they are translated to.
            progress: counts the sources of this rank.

        Returns:
            Statistics and sums of the outputs, reduced over all ranks.

        Raises:
            WorldError: an image cannot be read.
            Stopped: a rank was asked to stop.
        """
        collected = self.run_on_all_ranks(
            lambda: self._translate_share(translator, translation, progress)
        )
        assert collected.ratings is not None
        self._all_reduce(collected.statistics, collected.ratings, collected.nonfinite)
        rows_by_rank = self.world.all_gather(
            {position: row.cpu() for position, row in collected.grid_rows.items()}
        )
        collected.grid_rows = {n: row for rows in rows_by_rank for n, row in rows.items()}
        return collected

    @torch.no_grad()
    def _translate_share(
        self, translator: TrainedModel, translation: Translation, progress: ProgressBar
    ) -> Collected:
        """Translate this rank's share of a set and process each output once.

        No value is read from the device, so it computes while the next images are loaded.
        """
        sources, outputs_per_source, condition, rate = translation
        device, batch_size = self.world.device, BATCH_SIZE // outputs_per_source
        statistics = self._empty_statistics(sources, outputs_per_source)
        collected = Collected(statistics, _zero(torch.float64, device), _zero(torch.int64, device))
        for first, images in self.load(sources, self.share(sources, batch_size)):
            last = first + len(images) - 1
            positions = [min(first + i, last) for i in range(batch_size)]
            x = to_unit(_pad(images, batch_size), translator.dtype)
            outputs = translator.translate(x, condition(positions))
            self._add_outputs(collected, first, images, outputs, rate)
            progress.update(len(images))
        return collected

    def _add_outputs(
        self, collected: Collected, first: int, sources: Tensor, outputs: Tensor, rate: Rate
    ) -> None:
        """Add the outputs of consecutive sources.

        Args:
            collected: the sums to add to.
            first: the position of the first source.
            sources: uint8 (B, 3, H, H), without those that fill the batch.
            outputs: (BATCH_SIZE, 3, H, H) in [-1, 1].
            rate: rates sources by their outputs.
        """
        ratings, pixels = rate(outputs), to_uint8(outputs)
        per_source = BATCH_SIZE // len(ratings)
        count = len(sources) * per_source
        features = self.metrics.features(pixels)[:count]
        collected.statistics.update(features, first * per_source)
        assert collected.ratings is not None
        collected.ratings += ratings[: len(sources)].double().sum()
        collected.nonfinite += (~outputs[:count].isfinite()).flatten(1).any(1).sum()
        for i, source in enumerate(sources[: max(0, GRID_SOURCES - first)]):
            own_outputs = pixels[i * per_source : (i + 1) * per_source]
            collected.grid_rows[first + i] = torch.cat([source[None], own_outputs])


def _pad(images: Tensor, size: int) -> Tensor:
    """Repeat the last of the images (n, …) to fill a batch of `size`."""
    return torch.cat([images, images[-1:].expand(size - len(images), *images.shape[1:])])


def _zero(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)
