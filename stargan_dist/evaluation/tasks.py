"""Tasks of an evaluation, and the random inputs of each output.

A task is a guide and an ordered pair of domains. Every validation image of the source domain is
translated `OUTPUTS` times. The latent or reference of an output is drawn from (seed, task, source,
output), so it does not depend on the number of processes, the batch size or the order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stargan_dist.data.order import seeded_rng

OUTPUTS = 10  # per source, as in the paper
LATENT, REFERENCE, REAL = GUIDES = ("latent", "reference", "real")


class Task(NamedTuple):
    """Translation of one domain into another.

    The guide `real` gives the lower bound: nothing is translated, and validation images of the
    target are compared with its training images.

    Attributes:
        guide: `latent`, `reference` or `real`.
        source: the label of the source domain.
        target: the label of the target domain.
    """

    guide: str
    source: int
    target: int


def tasks(num_domains: int, guides: Sequence[str] = GUIDES) -> list[Task]:
    """List all tasks, grouped by target, so that each target's real images are processed once."""
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
    """Draw z for each output of a source, (OUTPUTS, latent_dim) ~ N(0, I)."""
    return seeded_rng(seed, "evaluate", *task, source).standard_normal((OUTPUTS, latent_dim))


def draw_references(task: Task, source: int, count: int, seed: int) -> np.ndarray:
    """Draw the index of the reference of each output of a source, (OUTPUTS,) in [0, count)."""
    return seeded_rng(seed, "evaluate", *task, source).integers(count, size=OUTPUTS)
