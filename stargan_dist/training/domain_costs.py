"""What K domains cost with a recipe: one training of all, or one of each pair of them.

Only numbers of parameters are counted, so nothing is allocated. The memory of one GPU in a training
is estimated by memory_estimate.py.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from stargan_dist.config import Config, LossConfig, OptimConfig
from stargan_dist.data.labels import domain_labels
from stargan_dist.nets.networks import generator_networks
from stargan_dist.objectives.recipes import resolve
from stargan_dist.training.memory_estimate import MOMENTS


class DomainCosts(NamedTuple):
    """What translation between all of K domains costs, in sum over all trainings.

    Attributes:
        recipe: its name.
        domains: K.
        runs: trainings: K(K - 1)/2 for a recipe between two domains, else 1.
        trained: parameters of all networks.
        translating: those of them that remain after the training: all networks but D.
        state_bytes: of the weights and Adam's moments of all networks.
    """

    recipe: str
    domains: int
    runs: int
    trained: int
    translating: int
    state_bytes: int


def domain_costs(config: Config, recipe: str, domains: int) -> DomainCosts:
    """Return the costs of a recipe for K domains, with the sizes and the precision of `config`.

    Raises:
        UserError: there is no such recipe, or it does not accept the configuration.
    """
    # Weights and learning rates of another recipe may not exist in this one, nor its schedule.
    config = replace(config, loss=LossConfig(), optim=OptimConfig(), schedule="published")
    spec = resolve(replace(config, recipe=recipe))
    takes_pairs = spec.recipe.takes_pairs
    of_run = domain_labels([*map(str, range(2 if takes_pairs else domains))])
    runs = domains * (domains - 1) // 2 if takes_pairs else 1
    with torch.device("meta"):
        networks = spec.recipe.build_networks(of_run, spec.config.model)
    trained = runs * sum(map(num_parameters, networks.values()))
    translating = runs * sum(map(num_parameters, generator_networks(networks).values()))
    state_bytes = (1 + MOMENTS) * trained * spec.policy.weights.itemsize
    return DomainCosts(recipe, domains, runs, trained, translating, state_bytes)


def num_parameters(network: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
