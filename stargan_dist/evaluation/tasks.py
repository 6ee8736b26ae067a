"""What is generated to measure a generator: tasks, and the inputs of each output.

A task is a guide and an ordered pair of domains. Every validation image of the source domain is
translated `OUTPUTS` times. The latent or reference of an output is drawn from (seed, task,
source, output), so neither the number of processes nor the batch size nor the order matter.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stargan_dist.data.order import seeded_rng

OUTPUTS = 10  # of each source, as in the paper
LATENT, REFERENCE, REAL = GUIDES = ("latent", "reference", "real")


class Task(NamedTuple):
    """Translate one domain into another. Domains by label.

    The guide `real` stands for the floor: nothing is translated, and validation images of the
    target are compared with its training images.
    """

    guide: str
    source: int
    target: int


def tasks(num_domains: int, guides: Sequence[str] = GUIDES) -> list[Task]:
    """All tasks, those of one target together: its real images are looked at once."""
    labels = range(num_domains)
    return [
        Task(guide, source, target)
        for target in labels
        for guide in (REAL, LATENT, REFERENCE)
        if guide in guides
        for source in labels
        if (source == target) == (guide == REAL)
    ]


def draw_latents(task: Task, source: int, latent_dim: int, seed: int) -> np.ndarray:
    """z of each output of one source, (OUTPUTS, latent_dim) ~ N(0, I)."""
    return seeded_rng(seed, "evaluate", *task, source).standard_normal((OUTPUTS, latent_dim))


def draw_references(task: Task, source: int, count: int, seed: int) -> np.ndarray:
    """The number of the reference of each output of one source, (OUTPUTS,), below `count`."""
    return seeded_rng(seed, "evaluate", *task, source).integers(count, size=OUTPUTS)
