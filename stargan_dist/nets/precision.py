"""Mixed precision: which part of which network computes in which dtype, as a table.

A part is a module (or a method of one) that computes under its own autocast and gives back what
it was given: so styles, logits and losses, which lie between the parts, are float32, and so are
weights, gradients and what optimizers keep. What no row names computes as its weights are.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Dtype = torch.dtype | None


class Policy(NamedTuple):
    """A row: the dtype of all weights, and what the parts compute in (None: as their weights)."""

    weights: torch.dtype
    G: Dtype = None
    """Both halves, but for the layers that make the image."""
    E: Dtype = None
    """The trunk; the heads, which make the style code, as their weights."""
    D: Dtype = None
    """The trunk, but for passes that ask for exactness (`Discriminator.forward`)."""


POLICIES = {
    "float64": Policy(torch.float64),
    "float32": Policy(torch.float32),
    "bfloat16": Policy(torch.float32, G=torch.bfloat16),
    "bfloat16_most": Policy(torch.float32, G=torch.bfloat16, E=torch.bfloat16, D=torch.bfloat16),
    "float16": Policy(torch.float32, G=torch.float16, E=torch.float16, D=torch.float16),
}


def autocast_to(dtype: Dtype, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to a dtype; None: whatever is the case around it.

    Autocast's cache of lowered weights is off: a part uses each weight once, so there is nothing
    to gain, and no copy made without gradients can meet a pass that needs them.
    """
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=False)


class PrecisionModule(nn.Module):
    """A part of a network with a precision of its own: see `computing`."""

    compute: Dtype = None
    compiled: ClassVar[tuple[str, ...]] = ()
    """The methods that `compile_parts` compiles."""


class Trunk(PrecisionModule, nn.Sequential):
    """Layers from an image on, which give back the dtype they were given."""

    compiled = ("lowered",)

    def forward(self, x: Tensor, *, exact: bool = False) -> Tensor:
        """Exact: in the dtype of the weights, and not compiled."""
        return super().forward(x) if exact else self.lowered(x)

    def lowered(self, x: Tensor) -> Tensor:
        with autocast_to(self.compute, x.device):
            return super().forward(x).to(x.dtype)


def precision_modules(networks: Mapping[str, nn.Module]) -> Iterator[tuple[str, PrecisionModule]]:
    """Every part of some networks, with its network's letter."""
    for letter, network in networks.items():
        yield from (
            (letter, part) for part in network.modules() if isinstance(part, PrecisionModule)
        )


def set_precision(networks: Mapping[str, nn.Module], policy: Policy) -> None:
    """Tell the parts what to compute in. The weights are left as they are."""
    for letter, part in precision_modules(networks):
        part.compute = getattr(policy, letter)


def compile_networks(networks: Mapping[str, nn.Module], backend: str = "inductor") -> None:
    """Compile each part for the shapes it meets. Weights and their names stay as they are.

    A compiled part has no second derivative: exact passes of D's trunk are left out.
    """
    compiled = partial(torch.compile, backend=backend, dynamic=False)
    for _, part in precision_modules(networks):
        for name in part.compiled:
            setattr(part, name, compiled(getattr(part, name)))
