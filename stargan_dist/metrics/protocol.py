"""What is generated to measure a generator: tasks, and the inputs of each output.

A task is a guide and an ordered pair of domains. Every validation image of the source domain is
translated `OUTPUTS` times. The latent or reference of an output is drawn from (seed, task,
source, output), so neither batch size nor order matter.
"""

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from stargan_dist.batch import to_unit
from stargan_dist.data.order import generator
from stargan_dist.data.reader import LoadedSplit
from stargan_dist.translate import Translator

OUTPUTS = 10  # of each source, as in the paper
GUIDES = ("latent", "reference")


class Task(NamedTuple):
    """Translate one domain into another. Domains by label."""

    guide: str
    source: int
    target: int


def tasks(num_domains: int) -> list[Task]:
    pairs = list(permutations(range(num_domains), 2))
    return [Task(guide, *pair) for guide in GUIDES for pair in pairs]


def outputs(translator: Translator, task: Task, real: LoadedSplit, seed: int) -> Iterator[Tensor]:
    """For each source of a task its translations, (OUTPUTS, 3, H, H), clamped to [-1, 1]."""
    references = real.of(task.target)
    for number, source in enumerate(real.of(task.source)):
        rng = generator(seed, "evaluate", *task, number)
        x = to_unit(source[None].to(translator.device), translator.dtype)
        y_trg = torch.full((OUTPUTS,), task.target, device=translator.device)
        if task.guide == "latent":
            drawn = rng.standard_normal((OUTPUTS, translator.config.model.latent_dim))
            z = torch.from_numpy(drawn).to(translator.device, translator.dtype)
            fakes = translator.from_latents(x, y_trg, z)
        else:
            picked = torch.from_numpy(rng.integers(len(references), size=OUTPUTS))
            x_ref = to_unit(references[picked].to(translator.device), translator.dtype)
            fakes = translator.from_references(x, y_trg, x_ref)
        yield fakes.clamp(-1, 1)
