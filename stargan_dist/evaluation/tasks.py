"""Tasks of an evaluation, and the random inputs of each output.

A task is a guide, a set of validation images and a target. Its sources are translated a number of
times. The latent or reference of an output is drawn from (seed, task, source, output), so it does
not depend on the number of processes, the batch size or the order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stargan_dist.data.labels import Labels, LabelSpace
from stargan_dist.data.order import seeded_rng

OUTPUTS = 10  # per source, as in the paper
GUIDES = LATENT, REFERENCE, LABEL, JOINT, REAL = ("latent", "reference", "label", "joint", "real")


class Task(NamedTuple):
    """Translation of a set of images to a target.

    The guide `real` gives the bound: nothing is translated, and validation images of the target are
    measured themselves.

    Attributes:
        guide: `latent` or `reference`, of translations between domains; `label` or `joint`, of
            translations to a label of the images' own data source or of another one; `real`.
        source: the number of the source domain, or of the data source of the images.
        target: the number of the target domain, or of the target in `label_targets`.
    """

    guide: str
    source: int
    target: int


def tasks(num_domains: int, guides: Sequence[str] = GUIDES) -> list[Task]:
    """List the tasks between domains, grouped by target.

    Each target's real images are processed once.
    """
    labels = range(num_domains)
    return [
        Task(guide, source, target)
        for target in labels
        for guide in (REAL, LATENT, REFERENCE)
        if guide in guides
        for source in labels
        if (source == target) == (guide == REAL)
    ]


class LabelTarget(NamedTuple):
    """A label that images are translated to: one column of one data source, and its value.

    Attributes:
        name: the column's name; that of an attribute that is flipped is followed by the value.
        source: the number of the data source.
        column: the number of the column among those of the data source.
        value: 1 for categories and attributes of an exclusive group, else 0 or 1.
    """

    name: str
    source: int
    column: int
    value: int


def label_targets(labels: Labels) -> list[LabelTarget]:
    """List the targets of all data sources: those of `Labels.targets`, flips in both directions."""
    names = iter(labels.names)
    return [
        LabelTarget(f"{name}={value}" if is_flipped else name, source, column, value)
        for source, space in enumerate(labels.spaces)
        for column in range(len(space.columns))
        for name, is_flipped in [(next(names), _is_flipped(space, column))]
        for value in ((0, 1) if is_flipped else (1,))
    ]


def _is_flipped(space: LabelSpace, column: int) -> bool:
    return space.binary and not space.group_of(space.columns[column])


def label_tasks(targets: Sequence[LabelTarget], num_sources: int) -> list[Task]:
    """List the tasks between labels, grouped by target.

    An attribute of another data source is set and not cleared, since no image is known to have it.
    """
    found = []
    for number, target in enumerate(targets):
        found += [Task(guide, target.source, number) for guide in (REAL, LABEL)]
        others = [source for source in range(num_sources) if source != target.source]
        found += [Task(JOINT, source, number) for source in others if target.value]
    return found


def draw_latents(
    task: Task, source: int, latent_dim: int, seed: int, outputs: int = OUTPUTS
) -> np.ndarray:
    """Draw z for each output of a source, (outputs, latent_dim) ~ N(0, I)."""
    return seeded_rng(seed, "evaluate", *task, source).standard_normal((outputs, latent_dim))


def draw_references(task: Task, source: int, count: int, seed: int) -> np.ndarray:
    """Draw the index of the reference of each output of a source, (OUTPUTS,) in [0, count)."""
    return seeded_rng(seed, "evaluate", *task, source).integers(count, size=OUTPUTS)
