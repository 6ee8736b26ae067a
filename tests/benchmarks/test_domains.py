"""The literal heads that `benchmarks/domains.py` times are the function of ours."""

import sys
from pathlib import Path

import pytest
import torch

from stargan_dist.nets.v2 import build_networks

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

from literal_heads import make_literal

DOMAINS, SIZE, BATCH = 3, 32, 5


def linears(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.Linear)]


def copy_stacked(stacked, branches):
    """Weights of stacked layers into a list of branches of as many layers."""
    for domain, branch in enumerate(branches):
        for layer, plain in zip(stacked, linears(branch), strict=True):
            plain.weight.data.copy_(layer.weight[domain])
            plain.bias.data.copy_(layer.bias[domain])


@pytest.fixture(scope="module")
def both():
    """Ours and the literal networks with the same weights, and random biases."""
    sizes = {"image_size": SIZE, "base_width": 4, "max_width": 8}
    torch.manual_seed(0)
    ours, other = build_networks(DOMAINS, **sizes), build_networks(2, **sizes)
    for name, parameter in [*ours.F.named_parameters(), *ours.E.head.named_parameters()]:
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    literal = make_literal(other, DOMAINS)
    for ours_trunk, trunk in ((ours.E.trunk, literal.E.trunk), (ours.D.trunk, literal.D.trunk)):
        trunk.load_state_dict(ours_trunk.state_dict())
    for layer, plain in zip(ours.F.shared, linears(literal.F.shared), strict=True):
        plain.load_state_dict(layer.state_dict())
    copy_stacked(ours.F.branches, literal.F.branches.branches)
    copy_stacked([ours.E.head], literal.E.head.branches)
    literal.D.head.linear.weight.data.copy_(ours.D.head.weight[:, 0])
    literal.D.head.linear.bias.data.copy_(ours.D.head.bias[:, 0])
    return ours, literal


@pytest.mark.parametrize("letter", ["F", "E", "D"])
def test_every_branch_then_picked_is_picked_first(both, letter):
    torch.manual_seed(1)
    x = torch.randn(BATCH, 16) if letter == "F" else torch.randn(BATCH, 3, SIZE, SIZE)
    y = torch.tensor([2, 0, 1, 1, 2])
    ours, literal = (getattr(networks, letter).double() for networks in both)
    torch.testing.assert_close(ours(x.double(), y), literal(x.double(), y))
