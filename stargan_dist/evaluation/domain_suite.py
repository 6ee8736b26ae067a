"""Translation between domains, as arXiv 1912.01865 measures it.

A task is an ordered pair of domains and a guide. Every validation image of the source domain is
translated `OUTPUTS` times. The rating of a source is the mean distance of its outputs from each
other.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stargan_dist.console.progress import ProgressBar
from stargan_dist.data.images import ImageSet, domain_images
from stargan_dist.data.reader import ShardReader
from stargan_dist.errors import UserError
from stargan_dist.evaluation.collector import Collected, Collector, RealImages, Translation
from stargan_dist.evaluation.metrics.statistics import Statistics
from stargan_dist.evaluation.suite import Lazy, Suite
from stargan_dist.evaluation.tasks import (
    LATENT,
    OUTPUTS,
    REAL,
    REFERENCE,
    Task,
    draw_latents,
    draw_references,
    tasks,
)
from stargan_dist.inference.model import TrainedModel
from stargan_dist.inference.pairs import AnyModel


def real_images(reader: ShardReader, domain: int) -> RealImages:
    """Return the images of a domain, identified by their shards."""
    name = reader.index.domains[domain]
    hashes = [shard.sha256 for shard in reader.index.splits.get(reader.split, {}).get(name, [])]
    shards = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return RealImages(domain_images(reader, domain), name, {"domain": name, "shards": shards})


class Target:
    """Lazily computed data that all tasks with the same target share.

    Attributes:
        label: the target domain.
        train: statistics of its training images.
        val: statistics of its validation images.
    """

    def __init__(self, collector: Collector, label: int) -> None:
        train, val = (
            real_images(collector.sources[split].readers[0], label) for split in ("train", "val")
        )
        self.label, self._collector, self._val = label, collector, val
        self.train = Lazy(lambda: collector.real_statistics(train))
        self.val = Lazy(lambda: collector.real_statistics(val))
        self._references: tuple[TrainedModel, Lazy[Tensor]] | None = None

    def references(self, model: TrainedModel, label: int) -> Tensor:
        """Return the conditioning (N, conditioning_dim) of its validation images by a model.

        That of the last model is kept.

        Args:
            label: the model's label of the domain.
        """
        if self._references is None or self._references[0] is not model:
            compute = partial(_encode_references, self._collector, model, label, self._val)
            self._references = model, Lazy(compute)
        return self._references[1]()


def _encode_references(
    collector: Collector, translator: TrainedModel, label: int, images: RealImages
) -> Tensor:
    if not len(images.images.numbers):
        raise UserError(f"domain {images.name} has no validation images")
    return collector.reference_conditioning(translator, label, images)


class DomainSuite(Suite):
    """All ordered pairs of domains, by latents and, where the recipe uses them, by references."""

    outputs_per_source = OUTPUTS

    def __init__(self, collector: Collector, translator: AnyModel, seed: int) -> None:
        super().__init__(collector, translator, seed)
        self.domains = translator.domains
        by_references = [REFERENCE] if translator.guided_by_references else []
        self.guides = [LATENT, *by_references, REAL]
        self.tasks = tasks(len(self.domains), self.guides)
        assert collector.metrics.diversity is not None
        self.diversity = collector.metrics.diversity
        frechet, kernel, diversity = collector.metrics.names
        self.metrics = (frechet, kernel, diversity)
        self._target: Target | None = None

    def header(self) -> dict[str, Any]:
        index = self.collector.sources["train"].readers[0].index
        return {
            "guides": self.guides,
            "extractors": self.collector.metrics.extractors,
            "domains": index.domains,
            "data": index.fingerprint,
        }

    def names(self, task: Task) -> tuple[str, str, str]:
        return task.guide, self.domains[task.source], self.domains[task.target]

    def sources(self, task: Task) -> ImageSet:
        return domain_images(self.collector.sources["val"].readers[0], task.source)

    def measure(self, task: Task, progress: ProgressBar) -> tuple[Collected, Statistics | None]:
        target = self._target_of(task)
        real = target.train()
        if task.guide == REAL:
            return Collected(target.val()), real
        model, label = self.collector.run_on_all_ranks(
            lambda: self.translator.between(task.source, task.target)
        )
        references = target.references(model, label) if task.guide == REFERENCE else None
        return self._translate(task, model, references, progress), real

    def _target_of(self, task: Task) -> Target:
        """Return the shared data of a task's target. Those of one target are kept."""
        if self._target is None or self._target.label != task.target:
            self._target = Target(self.collector, task.target)
        return self._target

    def _translate(
        self, task: Task, model: TrainedModel, references: Tensor | None, progress: ProgressBar
    ) -> Collected:
        sources = self.sources(task)
        if not len(sources.numbers):
            raise UserError(f"domain {self.domains[task.source]} has no validation images")

        def condition(positions: Sequence[int]) -> Tensor:
            return condition_outputs(self.translator, task, references, self.seed, positions[0])

        translation = Translation(sources, OUTPUTS, condition, self.rate)
        return self.collector.translate(model, translation, progress)

    def rate(self, outputs: Tensor) -> Tensor:
        """Return the diversity (1,) of the outputs (OUTPUTS, 3, H, H) of one source."""
        diversity: Tensor = self.diversity(outputs.float()[None])
        return diversity


def condition_outputs(
    translator: AnyModel, task: Task, references: Tensor | None, seed: int, source: int
) -> Tensor:
    """Return the conditioning (OUTPUTS, conditioning_dim) of the outputs of a source.

    Args:
        references: conditioning (N, conditioning_dim) of the references that are drawn from, for
            tasks guided by references.
        source: the number of the source in its domain.
    """
    model, label = translator.between(task.source, task.target)
    device = model.device
    if task.guide == LATENT:
        drawn = draw_latents(task, source, model.config.model.latent_dim, seed)
        z = torch.from_numpy(drawn).to(device, model.dtype, non_blocking=True)
        return model.condition_on_latents(z, torch.full((OUTPUTS,), label, device=device))
    assert references is not None
    chosen = torch.from_numpy(draw_references(task, source, len(references), seed))
    return references.index_select(0, chosen.to(device, non_blocking=True))
