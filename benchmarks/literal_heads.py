"""Literal forms of F and of the heads of E and D, which compute every domain for every sample.

As in the public implementation of arXiv 1912.01865, each has a list of K branches. All branches run
on every sample, their outputs are stacked, and the output of the sample's domain is selected. The
project's stacked heads select first (nets/blocks.py: StackedLinear).
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class AllBranches(nn.Module):
    """K branches, all computed: x (B, in), domains y (B,) -> (B, out), through (B, K, out)."""

    def __init__(self, num_domains: int, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(build() for _ in range(num_domains))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.stack([branch(x) for branch in self.branches], dim=1)
        return outputs[torch.arange(len(y)), y]


class AllLogits(nn.Module):
    """One layer with K outputs: x (B, in), domains y (B,) -> (B, 1)."""

    def __init__(self, num_domains: int, dim_in: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, num_domains)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(x)[torch.arange(len(y)), y][:, None]


def mlp(*dims: int) -> nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for dim_in, dim_out in pairwise(dims):
        layers += [nn.Linear(dim_in, dim_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class LiteralMapping(nn.Module):
    """F of the form `branches`: four shared layers, then all K branches of four layers each."""

    def __init__(self, num_domains: int, latent: int = 16, style: int = 64, hidden: int = 512):
        super().__init__()
        self.shared = mlp(latent, *[hidden] * 4)
        self.branches = AllBranches(num_domains, lambda: mlp(*[hidden] * 4, style))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.branches(self.shared(z).relu(), y)


def make_literal(networks: Mapping[str, Any], num_domains: int) -> dict[str, nn.Module]:
    """Replace F and, in place, the heads of E and D by literal ones; G and the trunks stay."""
    E, D = networks["E"], networks["D"]
    E.head = AllBranches(num_domains, lambda: nn.Linear(E.trunk.dim_out, 64))
    D.head = AllLogits(num_domains, D.trunk.dim_out)
    return {**networks, "F": LiteralMapping(num_domains)}
