"""Collection of features from real images and translations, over all ranks.

Each rank processes its share of the images, and sums are reduced over the ranks. Only data of
bounded size is gathered: features for the kernel distance, an image grid, conditioning vectors.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.console.progress import ProgressBar, progress_bar
from stargan_dist.data.batch import to_uint8, to_unit
from stargan_dist.data.images import NumberedImages, load_images, rank_batches
from stargan_dist.data.reader import open_reader
from stargan_dist.distributed.world import World
from stargan_dist.errors import UserError
from stargan_dist.evaluation.metrics.statistics import Statistics
from stargan_dist.evaluation.protocols import load_metrics
from stargan_dist.evaluation.tasks import LATENT, OUTPUTS, REAL, Task, draw_latents, draw_references
from stargan_dist.evaluation.tensor_cache import TensorCache
from stargan_dist.inference.model import TrainedModel

# Rounding depends on the size of a batch (not on its other images), and metrics must not depend on
# the distribution of images over ranks. Networks therefore always process batches of one size: the
# outputs of one source, or as many real images.
REAL_BATCH_SIZE = OUTPUTS
GRID_SOURCES = 4  # sources in the image grid of a task


T = TypeVar("T")


class Stopped(Exception):
    """Raised when the evaluation was asked to stop."""


@dataclass
class Translations:
    """Results of translating the sources of a task.

    Attributes:
        statistics: of the outputs.
        diversity: the mean pairwise distance of the outputs of a source, summed over sources.
        nonfinite: the number of outputs with a value that is not finite.
        grid_rows: by source number, a source and its outputs, uint8 (1 + OUTPUTS, 3, H, H).
    """

    statistics: Statistics
    diversity: Tensor
    nonfinite: Tensor
    grid_rows: dict[int, Tensor] = field(default_factory=dict)


class Collector:
    """Applies the networks of one protocol to the images of one dataset.

    Args:
        config: the run's configuration.
        world: the processes that share the images.
        should_stop: called between batches; True ends the evaluation.

    Raises:
        UserError: there are no shards, or the protocol's weights are not available.
    """

    def __init__(self, config: Config, world: World, should_stop: Callable[[], bool]) -> None:
        self.config, self.world, self.should_stop = config, world, should_stop
        self.image_size = config.model.image_size
        self.readers = {split: open_reader(config.data, split) for split in ("train", "val")}
        default_cache = storage.join(self.readers["train"].url, "statistics")
        self.cache = TensorCache(config.evaluation.cache or default_cache)
        self.metrics = load_metrics(config.evaluation, world, self.readers["train"], self.cache)

    def real_statistics(self, split: str, label: int) -> Statistics:
        """Return the statistics of all images of a domain; they are complete on rank 0 only.

        They are computed once per dataset and cached.

        Raises:
            WorldError: an image cannot be read.
            Stopped: a rank was asked to stop.
        """
        key = self._cache_key(split, label)
        cached = self.world.run_on_all_ranks(
            lambda: self.cache.load(key) if self.world.is_main else None
        )
        if self.world.all_reduce_max(cached is not None):
            return Statistics.from_dict(cached) if cached else self._empty_statistics(split, label)
        statistics = self._run_on_all_ranks(lambda: self._real_statistics_of_share(split, label))
        self._all_reduce(statistics)
        if self.world.is_main:
            self.cache.save(key, statistics.to_dict())
        return statistics

    def _cache_key(self, split: str, label: int) -> dict[str, Any]:
        """Return everything that the statistics of real images depend on."""
        index = self.readers[split].index
        domain = index.domains[label]
        hashes = [shard.sha256 for shard in index.splits.get(split, {}).get(domain, [])]
        return {
            "what": "statistics of real images",
            "version": 1,
            "protocol": self.metrics.protocol,
            "network": self.metrics.extractors["features"]["sha256"],
            "image_size": self.image_size,
            "split": split,
            "domain": domain,
            "shards": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        }

    def _empty_statistics(self, split: str, label: int, per_image: int = 1) -> Statistics:
        """Return statistics to be filled with `per_image` images for each image of a domain."""
        total = self.readers[split].num_images(label) * per_image
        return Statistics(self.metrics.num_features, total, self.world.device)

    def _run_on_all_ranks(self, compute_share: Callable[[], T]) -> T:
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

    def _batches(self, split: str, label: int, batch_size: int) -> list[range]:
        """Return the image numbers of this rank's share of a domain, in batches."""
        count = self.readers[split].num_images(label)
        return rank_batches(count, batch_size, self.world.rank, self.world.size)

    def count_sources(self, tasks: Iterable[Task]) -> int:
        """Return the number of sources that this rank translates in these tasks."""
        return sum(len(self._batches("val", t.source, 1)) for t in tasks if t.guide != REAL)

    def _load_images(
        self, split: str, label: int, batch_size: int, progress: ProgressBar
    ) -> Iterator[NumberedImages]:
        """Yield this rank's images of a domain, on its device, until asked to stop."""
        loaded = load_images(
            self.readers[split],
            label,
            self.image_size,
            self._batches(split, label, batch_size),
            workers=self.config.data.workers,
            start_method=self.config.data.start_method,
            pin_memory=self.world.device.type == "cuda",
        )
        with closing(loaded):
            for first, images in loaded:
                if self.should_stop():
                    return
                yield NumberedImages(first, images.to(self.world.device, non_blocking=True))
                progress.update(len(images))

    def _load_real_images(self, split: str, label: int, title: str) -> Iterator[NumberedImages]:
        """Yield real images in batches of up to REAL_BATCH_SIZE, with a progress line."""
        total = sum(map(len, self._batches(split, label, REAL_BATCH_SIZE)))
        shown = self.world.is_main
        with progress_bar(total, "images", description=title, shown=shown, brief=True) as progress:
            yield from self._load_images(split, label, REAL_BATCH_SIZE, progress)

    @torch.no_grad()
    def _real_statistics_of_share(self, split: str, label: int) -> Statistics:
        """Compute the statistics of this rank's share of a domain."""
        statistics = self._empty_statistics(split, label)
        title = f"real {self.readers[split].index.domains[label]} ({split})"
        for first, images in self._load_real_images(split, label, title):
            features = self.metrics.features(_pad_batch(images))[: len(images)]
            statistics.update(features, first)
        return statistics

    @torch.no_grad()
    def reference_conditioning(self, translator: TrainedModel, label: int) -> Tensor:
        """Encode all validation images of a domain as references, each once.

        Each image is the reference of many outputs.

        Returns:
            Their conditioning (N, conditioning_dim), on the device of every rank.

        Raises:
            WorldError: an image cannot be read.
            UserError: the domain has no validation images.
            Stopped: a rank was asked to stop.
        """
        conditioning = self._run_on_all_ranks(lambda: self._encode_share(translator, label))
        gathered = torch.cat(self.world.all_gather(conditioning))
        if not len(gathered):
            raise UserError(f"domain {translator.domains[label]} has no validation images")
        return gathered.to(self.world.device)

    def _encode_share(self, translator: TrainedModel, label: int) -> Tensor:
        """Encode this rank's share of a domain's validation images, on the CPU."""
        conditioning = [torch.zeros(0, translator.conditioning_dim)]
        title = f"styles of {translator.domains[label]}"
        for _, images in self._load_real_images("val", label, title):
            y = torch.full((REAL_BATCH_SIZE,), label, device=images.device)
            x_ref = to_unit(_pad_batch(images), translator.dtype)
            batch = translator.condition_on_references(x_ref, y)
            conditioning.append(batch[: len(images)].cpu())
        return torch.cat(conditioning)

    def translate_task(
        self,
        translator: TrainedModel,
        task: Task,
        references: Tensor | None,
        seed: int,
        progress: ProgressBar,
    ) -> Translations:
        """Translate all sources of a task.

        Args:
            translator: the networks.
            task: a task guided by latents or by references.
            references: `reference_conditioning` of the target, for tasks guided by references.
            seed: the seed of latents and references.
            progress: counts the sources of this rank.

        Returns:
            The translations; statistics and sums are reduced over all ranks.

        Raises:
            WorldError: a validation image cannot be read, or the source domain has none.
            Stopped: a rank was asked to stop.
        """
        condition = partial(_condition_outputs, translator, task, references, seed)
        translations = self._run_on_all_ranks(
            lambda: self._translate_share(translator, task.source, condition, progress)
        )
        self._all_reduce(translations.statistics, translations.diversity, translations.nonfinite)
        rows_by_rank = self.world.all_gather(
            {number: row.cpu() for number, row in translations.grid_rows.items()}
        )
        translations.grid_rows = {n: row for rows in rows_by_rank for n, row in rows.items()}
        return translations

    @torch.no_grad()
    def _translate_share(
        self,
        translator: TrainedModel,
        label: int,
        condition: Callable[[int], Tensor],
        progress: ProgressBar,
    ) -> Translations:
        """Translate this rank's sources of a domain and process each output once.

        No value is read from the device, so it computes while the next images are loaded.

        Args:
            translator: the networks.
            label: the source domain.
            condition: maps a source's number to the conditioning of its outputs.
            progress: counts the sources.
        """
        if not self.readers["val"].num_images(label):
            raise UserError(f"domain {translator.domains[label]} has no validation images")
        device = self.world.device
        translations = Translations(
            self._empty_statistics("val", label, OUTPUTS),
            torch.zeros((), dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )
        for number, source in self._load_images("val", label, 1, progress):
            x = to_unit(source, translator.dtype)
            outputs = translator.translate(x, condition(number))
            self._add_outputs(translations, number, source, outputs)
        return translations

    def _add_outputs(
        self, translations: Translations, number: int, source: Tensor, outputs: Tensor
    ) -> None:
        """Add the outputs (OUTPUTS, 3, H, H) of a source, uint8 (1, 3, H, H), to the translations.

        Args:
            number: the number of the source in its domain.
        """
        pixels = to_uint8(outputs)
        translations.statistics.update(self.metrics.features(pixels), number * OUTPUTS)
        translations.diversity += self.metrics.diversity(outputs.float()[None]).double().sum()
        translations.nonfinite += (~outputs.isfinite()).flatten(1).any(1).sum()
        if number < GRID_SOURCES:
            translations.grid_rows[number] = torch.cat([source, pixels])


def _condition_outputs(
    translator: TrainedModel, task: Task, references: Tensor | None, seed: int, source: int
) -> Tensor:
    """Return the conditioning (OUTPUTS, conditioning_dim) of the outputs of a source."""
    device = translator.device
    if task.guide == LATENT:
        drawn = draw_latents(task, source, translator.config.model.latent_dim, seed)
        z = torch.from_numpy(drawn).to(device, translator.dtype, non_blocking=True)
        y_trg = torch.full((OUTPUTS,), task.target, device=device)
        return translator.condition_on_latents(z, y_trg)
    assert references is not None
    chosen = torch.from_numpy(draw_references(task, source, len(references), seed))
    return references.index_select(0, chosen.to(device, non_blocking=True))


def _pad_batch(images: Tensor) -> Tensor:
    """Repeat the last of the images (n, …) to fill a batch of REAL_BATCH_SIZE."""
    missing = REAL_BATCH_SIZE - len(images)
    return torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
