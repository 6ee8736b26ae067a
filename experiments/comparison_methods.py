"""The methods of the comparison, the runs that each needs, and what their networks cost."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from launching import CONFIGS, ROOT
from torch import nn

sys.path.append(str(ROOT / "benchmarks"))

from inputs import random_batch
from iteration_flops import FlopCount, count_gflop

from stargan_dist import config as configs
from stargan_dist.data.labels import Labels, domain_labels
from stargan_dist.data.order import PAIR
from stargan_dist.inference.model import TrainedModel
from stargan_dist.nets.masks import no_masks
from stargan_dist.nets.networks import generator_networks
from stargan_dist.objectives.recipes import TABLE, RunSpec, resolve

BUDGETS = {"images": "Equal images", "flops": "Equal FLOPs"}  # what is equal for all methods
REFERENCE = "f"  # the method whose images and FLOPs are every method's budget
BATCH = 16  # of the reference, in images


class Method(NamedTuple):
    """A row of the comparison.

    Attributes:
        title: its name in tables.
        batch: images of an iteration.
        lr: learning rate of all networks but F.
        settings: further settings of its trainings.
    """

    title: str
    batch: int
    lr: float
    settings: Mapping[str, object] = {}


# The batches of the papers, where those of StarGAN v2 are the demo's. Rates are higher than the
# papers', as trainings are shorter by two orders of magnitude.
METHODS = {
    "stargan": Method("StarGAN", 16, 8e-4),
    "cyclegan": Method("CycleGAN", 2, 8e-4),
    "munit": Method("MUNIT", 2, 4e-4),
    "drit": Method("DRIT", 2, 4e-4, {"optim.lr_content": 1.6e-4}),
    "msgan": Method("MSGAN", 2, 2e-4, {"optim.lr_content": 8e-5}),  # at 4e-4 latents end in noise
    "f": Method("StarGAN v2", 16, 8e-4, {"optim.lr_mapping": 8e-5, "optim.ema": 0.99}),
}


class Part(NamedTuple):
    """A training of a method: of all species, or of a pair of them.

    Attributes:
        method: a key of METHODS.
        budget: images or flops; empty for the reference, whose trainings are those of both.
        pair: two species; empty: all.
    """

    method: str
    budget: str
    pair: tuple[str, ...]

    @property
    def row(self) -> str:
        """The name of its row in the study, and of its folder."""
        return "/".join(filter(None, (self.budget, "-".join((self.method, *self.pair)))))

    def settings(self, steps: int) -> dict[str, object]:
        """Return the settings of the training that differ between methods."""
        method, optim = METHODS[self.method], TABLE[self.method].optim
        settings: dict[str, object] = {
            "batch_size": method.batch,
            "optim.lr": method.lr,
            "loss.ds_iter": steps,
        }
        if optim.decay_end:  # from the middle of the training on, as in the papers
            settings |= {"optim.decay_begin": steps // 2, "optim.decay_end": steps}
        if optim.halve_every:  # ten times
            settings["optim.halve_every"] = max(steps // 10, 1)
        if self.pair:
            settings["data.pair"] = f"[{', '.join(self.pair)}]"
        return {**settings, **method.settings}


class Cost(NamedTuple):
    """What a run of a method costs.

    Attributes:
        parameters: of the networks that translate.
        training_gflop: per image that is seen in training.
        translation_gflop: per output.
    """

    parameters: int
    training_gflop: float
    translation_gflop: float


class Plan(NamedTuple):
    """All trainings of a comparison.

    Attributes:
        parts: by row.
        budgets: what is equal, in the order of the tables.
        domains: the species.
        budget_images: images that the reference sees.
        costs: by method.
    """

    parts: dict[str, Part]
    budgets: list[str]
    domains: list[str]
    budget_images: int
    costs: dict[str, Cost]

    def images(self, row: str) -> int:
        """Return the number of images that a training sees, a multiple of its batch."""
        return self.steps(row) * METHODS[self.parts[row].method].batch

    def steps(self, row: str) -> int:
        """Return the number of iterations of a training."""
        part = self.parts[row]
        images = self.budget_images / len(pairs_of(part.method, self.domains))
        if part.budget == "flops":
            gflop = {name: cost.training_gflop for name, cost in self.costs.items()}
            images *= gflop[REFERENCE] / gflop[part.method]
        return max(round(images / METHODS[part.method].batch), 1)

    def most_processes(self, row: str) -> int:
        """Return how many processes can share a training's batch: pairs are not divided."""
        part = self.parts[row]
        return METHODS[part.method].batch // (PAIR if part.pair else 1)

    def parts_of(self, method: str, budget: str) -> list[str]:
        """Return the rows of all trainings of a method under a budget."""
        parts = self.parts.items()
        return [row for row, p in parts if p.method == method and p.budget in (budget, "")]


def plan_of(
    methods: Sequence[str], budgets: Sequence[str], domains: Sequence[str], steps: int
) -> Plan:
    """Plan a comparison in which the reference has a number of iterations."""
    parts = [
        Part(method, "" if method == REFERENCE else budget, pair)
        for budget in budgets
        for method in methods
        for pair in pairs_of(method, domains)
    ]
    costs = {method: cost_of(method, len(domains)) for method in {REFERENCE, *methods}}
    return Plan({p.row: p for p in parts}, [*budgets], [*domains], steps * BATCH, costs)


def pairs_of(method: str, domains: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the pairs that a method trains a run for; an empty one stands for all domains."""
    return [*itertools.combinations(domains, 2)] if TABLE[method].takes_pairs else [()]


# Costs.


def spec_of(method: str) -> RunSpec:
    """Return the specification of a method's trainings."""
    file = CONFIGS / "comparison" / "demo.yaml"
    return resolve(configs.parse(["--config", str(file), "--recipe", method]))


def cost_of(method: str, num_domains: int) -> Cost:
    """Count what a run of a method costs."""
    spec = spec_of(method)
    domains = 2 if spec.recipe.takes_pairs else num_domains
    labels = domain_labels([str(number) for number in range(domains)])
    networks = spec.recipe.build_networks(labels, spec.config.model)
    translating = generator_networks(networks)
    parameters = sum(p.numel() for net in translating.values() for p in net.parameters())
    training_gflop = count_gflop(
        networks, pair_batch(spec), no_masks, recipe=spec.recipe, labels=labels
    )
    return Cost(parameters, training_gflop, translation_gflop(spec, translating, labels))


def translation_gflop(spec: RunSpec, networks: Mapping[str, nn.Module], labels: Labels) -> float:
    """Return the GFLOP of one latent-guided output."""
    for network in networks.values():
        network.eval()
    model = TrainedModel(networks, spec, labels, 0)
    batch = pair_batch(spec)
    with FlopCount() as counter:
        model.from_latents(batch.x[:1], batch.y_trg[:1], batch.z[:1])
    return counter.total / 1e9


def pair_batch(spec: RunSpec) -> Any:
    """Return a batch of an image of each of two domains."""
    model = spec.config.model
    batch = random_batch(model.image_size, 2, 2)
    z, z2 = torch.randn(2, 2, model.latent_dim)
    return batch._replace(y=torch.tensor([0, 1]), y_trg=torch.tensor([1, 0]), z=z, z2=z2)
