"""F, E and D with every domain computed: what the number of domains costs when written plainly.

As in the public implementation of arXiv 1912.01865: a list of K branches, all of them run on every
sample, their outputs stacked, the sample's own picked. Our stacked heads pick first.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from stargan_dist.nets.v2 import Networks


class AllBranches(nn.Module):
    """K branches; (B, in) and domains (B,) -> (B, out), by way of (B, K, out)."""

    def __init__(self, num_domains: int, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(make() for _ in range(num_domains))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        outs = torch.stack([branch(x) for branch in self.branches], dim=1)
        return outs[torch.arange(len(y)), y]


class AllLogits(nn.Module):
    """One layer of K outputs; (B, in) and domains (B,) -> (B, 1)."""

    def __init__(self, num_domains: int, dim_in: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim_in, num_domains)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(x)[torch.arange(len(y)), y][:, None]


def mlp(*dims: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for dim_in, dim_out in pairwise(dims):
        layers += [nn.Linear(dim_in, dim_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class LiteralMapping(nn.Module):
    """F of the form `branches`: four shared layers, then all K branches of four."""

    def __init__(self, num_domains: int, latent: int = 16, style: int = 64, hidden: int = 512):
        super().__init__()
        self.shared = mlp(latent, *[hidden] * 4)
        self.branches = AllBranches(num_domains, lambda: mlp(*[hidden] * 4, style))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.branches(self.shared(z).relu(), y)


def make_literal(networks: Networks, num_domains: int) -> Networks:
    """The same trunks and G, with F and the heads of E and D replaced by plain ones."""
    E, D = networks.E, networks.D
    E.head = AllBranches(num_domains, lambda: nn.Linear(E.trunk.dim_out, 64))  # type: ignore[assignment]
    D.head = AllLogits(num_domains, D.trunk.dim_out)  # type: ignore[assignment]
    return networks._replace(F=LiteralMapping(num_domains))  # type: ignore[arg-type]
