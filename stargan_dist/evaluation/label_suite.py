"""Translation to labels, as arXiv 1711.09020 measures it (section 5).

A task is a target label and the validation images of one data source that do not have it. Each is
translated once. Its rating is 1 if a classifier of real images does not find the target in the
output, else 0: their mean is the classification error.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stargan_dist.console.progress import ProgressBar
from stargan_dist.data.batch import to_uint8
from stargan_dist.data.images import ImageSet
from stargan_dist.errors import UserError
from stargan_dist.evaluation.collector import Collected, Collector, RealImages, Translation
from stargan_dist.evaluation.labelled_source import LabelledSource
from stargan_dist.evaluation.metrics.statistics import Statistics
from stargan_dist.evaluation.suite import Lazy, Suite
from stargan_dist.evaluation.tasks import (
    JOINT,
    LABEL,
    REAL,
    LabelTarget,
    Task,
    draw_latents,
    label_targets,
    label_tasks,
)
from stargan_dist.inference.model import TrainedModel


class LabelSuite(Suite):
    """Translation of each data source's images to each label of each data source.

    Outputs are compared with the training images that have the label, if these are of the same data
    source: images of two sources differ in more than the label.

    Args:
        sources: all data sources.
    """

    outputs_per_source = 1
    translator: TrainedModel

    def __init__(
        self,
        collector: Collector,
        sources: Sequence[LabelledSource],
        translator: TrainedModel,
        seed: int,
    ) -> None:
        super().__init__(collector, translator, seed)
        self.labels, self.labelled = translator.labels, sources
        self.targets = label_targets(self.labels)
        self.tasks = label_tasks(self.targets, len(sources))
        frechet, kernel, *_ = collector.metrics.names
        self.metrics = (frechet, kernel, collector.metrics.classifier.metric)
        self._latest: tuple[LabelTarget, Lazy[Statistics]] | None = None

    def header(self) -> dict[str, Any]:
        classifiers = {f"classifier_{s.name}": s.description for s in self.labelled}
        guides = {task.guide for task in self.tasks}
        return {
            "guides": [guide for guide in (LABEL, JOINT, REAL) if guide in guides],
            "extractors": self.collector.metrics.extractors | classifiers,
            "domains": [target.name for target in self.targets],
            "data": self.collector.sources["train"].fingerprint,
        }

    def names(self, task: Task) -> tuple[str, str, str]:
        return task.guide, self.labelled[task.source].name, self.targets[task.target].name

    def sources(self, task: Task) -> ImageSet:
        target, source = self.targets[task.target], self.labelled[task.source]
        if task.guide == JOINT:
            return source.all_images("val")
        return source.images("val", target.column, 1 - target.value, target.name).images

    def measure(self, task: Task, progress: ProgressBar) -> tuple[Collected, Statistics | None]:
        target = self.targets[task.target]
        if task.guide == REAL:
            return self._measure_real(target), self._train_statistics(target)
        collected = self._translate(task, target, progress)
        return collected, None if task.guide == JOINT else self._train_statistics(target)

    def _real(self, split: str, target: LabelTarget) -> RealImages:
        """Return the real images that have a target label."""
        source = self.labelled[target.source]
        return source.images(split, target.column, target.value, target.name)

    def _train_statistics(self, target: LabelTarget) -> Statistics:
        """Return the statistics of the training images that have a target label.

        Those of the latest target are kept.
        """
        if self._latest is None or self._latest[0] != target:
            real = self._real("train", target)
            self._latest = target, Lazy(lambda: self.collector.real_statistics(real))
        return self._latest[1]()

    def _measure_real(self, target: LabelTarget) -> Collected:
        """Measure the validation images that have a target label."""
        real = self._real("val", target)
        name = self.labelled[target.source].name
        if not len(real.images.numbers):
            raise UserError(f"{name} has no validation images with {target.name}")
        ratings = self.collector.rate_real(real, partial(self._rate, target))
        return Collected(self.collector.real_statistics(real), ratings)

    def _translate(self, task: Task, target: LabelTarget, progress: ProgressBar) -> Collected:
        sources, (_, name, _) = self.sources(task), self.names(task)
        if not len(sources.numbers):
            raise UserError(f"{name} has no validation images to translate to {target.name}")

        def condition(positions: Sequence[int]) -> Tensor:
            return self._condition(task, sources, positions)

        rate = partial(self._rate, target)
        translation = Translation(sources, self.outputs_per_source, condition, rate)
        return self.collector.translate(self.translator, translation, progress)

    def _condition(self, task: Task, sources: ImageSet, positions: Sequence[int]) -> Tensor:
        """Return the conditioning (B, conditioning_dim) of the outputs of sources."""
        device, dtype = self.translator.device, self.translator.dtype
        latent_dim = self.translator.config.model.latent_dim
        drawn = [draw_latents(task, i, latent_dim, self.seed, 1) for i in positions]
        z = torch.from_numpy(np.concatenate(drawn))
        y_trg = torch.stack([self._target_label(task, int(sources.numbers[i])) for i in positions])
        return self.translator.condition_on_latents(
            z.to(device, dtype, non_blocking=True), y_trg.to(device, non_blocking=True)
        )

    def _target_label(self, task: Task, number: int) -> Tensor:
        """Return the label that the validation image with a number is translated to."""
        columns = self.labelled[task.source].columns["val"][number]
        y = torch.from_numpy(self.labels.vector(task.source, columns))
        target = self.targets[task.target]
        return self.labels.target(y, target.source, target.column)

    def _rate(self, target: LabelTarget, images: Tensor) -> Tensor:
        """Return 1 for images (B, 3, H, H) without the target according to the classifier."""
        classifier = self.labelled[target.source].classifier
        return classifier.misses(to_uint8(images), target.column, target.value)
