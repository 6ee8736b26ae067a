"""The labels of a data source's images, and a classifier that is trained on them.

Both are computed once per dataset and cached. Ranks share the reading of labels. Rank 0 alone
trains, so that the classifier does not depend on the number of ranks, and sends it to the others.
"""

from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from stargan_dist.console.progress import progress_bar
from stargan_dist.data.images import ImageSet
from stargan_dist.data.labels import LabelSpace
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.sources import DataSources
from stargan_dist.errors import UserError
from stargan_dist.evaluation.collector import Collector, RealImages
from stargan_dist.evaluation.metrics.classifier import (
    Classifier,
    ClassifierForm,
    ClassifierTraining,
    draw_positions,
)

SCAN_CHUNK = 256  # images whose labels are read between two checks for a stop
TRAINING_CHUNK = 10  # steps between two collectives: ranks that wait for rank 0 must not time out


@dataclass(frozen=True)
class LabelledSource:
    """A data source, the labels of all its images, and a classifier of them.

    Attributes:
        readers: by split.
        space: the labels.
        columns: by split, uint8 (number of images, number of columns), 0 or 1.
        classifier: on the rank's device.
        description: of the classifier, for the result file.
    """

    readers: dict[str, ShardReader]
    space: LabelSpace
    columns: dict[str, np.ndarray]
    classifier: Classifier
    description: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the data source in results."""
        return self.space.name or "data"

    def images(self, split: str, column: int, value: int, name: str) -> RealImages:
        """Return the images with a value in a column.

        Args:
            name: the name of this label.
        """
        reader = self.readers[split]
        numbers = np.flatnonzero(self.columns[split][:, column] == value)
        label = {"label": self.space.columns[column], "value": value}
        return RealImages(ImageSet(reader, numbers), name, _key(reader, self.space) | label)

    def all_images(self, split: str) -> ImageSet:
        """Return all images of a split."""
        return ImageSet(self.readers[split], range(len(self.columns[split])))


def load_source(collector: Collector, number: int) -> LabelledSource:
    """Load the labels of a data source and its classifier, or compute them. Collective.

    Args:
        collector: reads the images.
        number: the number of the data source.

    Raises:
        UserError: a label or an image cannot be read, or there are no training images.
        Stopped: a rank was asked to stop.
    """
    space = collector.sources["train"].labels.spaces[number]
    columns = {
        split: _load_columns(collector, sources, number)
        for split, sources in collector.sources.items()
    }
    readers = {split: sources.readers[number] for split, sources in collector.sources.items()}
    form = collector.metrics.classifier
    state = _load_state(collector, form, readers["train"], space, columns["train"])
    classifier = Classifier(form, space, state).to(collector.world.device)
    digest = sha256(save(state)).hexdigest()
    description = {"network": form.network, "official": True, "sha256": digest}
    return LabelledSource(readers, space, columns, classifier, description)


def _key(reader: ShardReader, space: LabelSpace) -> dict[str, Any]:
    """Return what determines the labels of a data source, in keys of the cache."""
    return {
        "data": reader.index.fingerprint,
        "columns": list(space.columns),
        "binary": space.binary,
        "category": space.key,
    }


# Labels.


def _load_columns(collector: Collector, sources: DataSources, number: int) -> np.ndarray:
    """Load the labels of a split from the cache, or read them from all samples."""
    reader, space = sources.readers[number], sources.labels.spaces[number]
    cache = collector.cache(reader)
    key = {"what": "labels of images", "version": 1, "split": reader.split, **_key(reader, space)}
    cached = collector.world.broadcast_from_main(lambda: cache.load(key))
    if cached:
        return cached["columns"].numpy()
    share = collector.run_on_all_ranks(lambda: _read_share(collector, sources, number))
    columns = np.concatenate(collector.world.all_gather(share))
    if collector.world.is_main:
        cache.save(key, {"columns": torch.from_numpy(columns)})
    return columns


def _read_share(collector: Collector, sources: DataSources, number: int) -> np.ndarray:
    """Read the labels of this rank's share of a split."""
    reader, labels = sources.readers[number], sources.labels
    images = _all_images(reader)
    share = collector.share(images, SCAN_CHUNK)
    columns = [np.zeros((0, len(labels.spaces[number].columns)), np.uint8)]
    total, shown = sum(map(len, share)), collector.world.is_main
    title = f"labels of {labels.spaces[number].name} ({reader.split})"
    with progress_bar(total, "images", description=title, shown=shown, brief=True) as progress:
        for positions in share:
            if collector.should_stop():
                break
            locations = [images.locate(position) for position in positions]
            y = torch.stack(sources.labels_in_order(number, locations))
            vectors = labels.to_vectors(y, torch.float32)[:, labels.column_slice(number)]
            columns.append(vectors.numpy().astype(np.uint8))
            progress.update(len(positions))
    return np.concatenate(columns)


def _all_images(reader: ShardReader) -> ImageSet:
    return ImageSet(reader, range(sum(map(sum, reader.index.counts(reader.split)))))


# The classifier.


def _load_state(
    collector: Collector,
    form: ClassifierForm,
    reader: ShardReader,
    space: LabelSpace,
    columns: np.ndarray,
) -> dict[str, Tensor]:
    """Load the weights of a classifier from the cache, or train it."""
    key = {
        "what": "classifier of labels",
        "version": 1,
        "network": form.network,
        "training": [form.steps, form.batch_size, form.learning_rate],
        "image_size": collector.image_size,
        **_key(reader, space),
    }
    cache, world = collector.cache(reader), collector.world
    state = world.broadcast_from_main(lambda: cache.load(key))
    if state is None:
        if not len(columns):
            raise UserError(f"{reader.url} has no training images for a classifier of its labels")
        state = _train(collector, ClassifierTraining(form, space, world.device), reader, columns)
        if world.is_main:
            cache.save(key, state)
    return state


def _train(
    collector: Collector, training: ClassifierTraining, reader: ShardReader, columns: np.ndarray
) -> dict[str, Tensor]:
    """Train a classifier on rank 0, and return its weights on all ranks."""
    world = collector.world
    with closing(_training_steps(collector, training, reader, columns)) as steps:
        for _ in range(0, training.form.steps, TRAINING_CHUNK):
            own_steps = islice(steps, TRAINING_CHUNK if world.is_main else 0)
            collector.run_on_all_ranks(partial(deque, own_steps, 0))
    return world.broadcast_from_main(training.state)


def _training_steps(
    collector: Collector, training: ClassifierTraining, reader: ShardReader, columns: np.ndarray
) -> Generator[None, None, None]:
    """Take the steps of a training, one for each value that is yielded, until asked to stop."""
    form, count = training.form, len(columns)
    batches = [draw_positions(form, count, step) for step in range(form.steps)]
    title = f"classifier of {training.labels.spaces[0].name}"
    with (
        progress_bar(form.steps, "steps", description=title, brief=True) as progress,
        closing(collector.load(_all_images(reader), batches)) as loaded,
    ):
        for (_, images), positions in zip(loaded, batches, strict=False):
            training.step(images, columns[positions])
            progress.update(1)
            yield
