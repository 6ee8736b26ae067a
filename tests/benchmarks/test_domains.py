"""The literal networks that `benchmarks/domains.py` times compute the same as the project's."""

import sys
from pathlib import Path

import pytest
import torch

from stargan_dist.config import ModelConfig

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

from inputs import starganv2_networks
from literal_heads import make_literal

DOMAINS, SIZE, BATCH = 3, 32, 5


def linear_layers(module):
    return [m for m in module.modules() if isinstance(m, torch.nn.Linear)]


def copy_stacked(stacked, branches):
    """Copy the weights of stacked layers into a list of branches with as many layers."""
    for domain, branch in enumerate(branches):
        for layer, linear in zip(stacked, linear_layers(branch), strict=True):
            linear.weight.data.copy_(layer.weight[domain])
            linear.bias.data.copy_(layer.bias[domain])


@pytest.fixture(scope="module")
def both():
    """The project's networks and the literal ones with the same weights, and random biases."""
    model = ModelConfig(image_size=SIZE, base_width=4, max_width=8)
    torch.manual_seed(0)
    ours, others = starganv2_networks(DOMAINS, model), starganv2_networks(2, model)
    F, E, D = (ours[letter] for letter in "FED")
    for name, parameter in [*F.named_parameters(), *E.head.named_parameters()]:
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    literal = make_literal(others, DOMAINS)
    for letter in "ED":
        literal[letter].trunk.load_state_dict(ours[letter].trunk.state_dict())
    for layer, linear in zip(F.shared, linear_layers(literal["F"].shared), strict=True):
        linear.load_state_dict(layer.state_dict())
    copy_stacked(F.branches, literal["F"].branches.branches)
    copy_stacked([E.head], literal["E"].head.branches)
    literal["D"].head.linear.weight.data.copy_(D.head.weight[:, 0])
    literal["D"].head.linear.bias.data.copy_(D.head.bias[:, 0])
    return ours, literal


@pytest.mark.parametrize("letter", ["F", "E", "D"])
def test_selecting_the_branch_first_equals_computing_every_branch(both, letter):
    torch.manual_seed(1)
    x = torch.randn(BATCH, 16) if letter == "F" else torch.randn(BATCH, 3, SIZE, SIZE)
    y = torch.tensor([2, 0, 1, 1, 2])
    ours, literal = (networks[letter].double() for networks in both)
    torch.testing.assert_close(ours(x.double(), y), literal(x.double(), y))
