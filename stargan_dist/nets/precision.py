"""Mixed precision: the dtype that each part of each network computes in, as a table.

A `PrecisionModule` computes under its own autocast and returns the dtype of its input. Styles,
logits and losses pass between such modules and are therefore float32, as are weights, gradients and
optimizer states. Parts that no row of the table names compute in the dtype of their weights.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

Dtype = torch.dtype | None


class Policy(NamedTuple):
    """The dtype of all weights, and of each network's computation (None: that of its weights)."""

    weights: torch.dtype
    G: Dtype = None
    """Both halves, except for the layers that produce the image."""
    E: Dtype = None
    """The trunk. The heads, which produce the style code, compute in the dtype of their weights."""
    D: Dtype = None
    """The trunk, except in passes with `double_backward`."""
    C: Dtype = None
    """The trunk."""


POLICIES = {
    "float64": Policy(torch.float64),
    "float32": Policy(torch.float32),
    "bfloat16": Policy(torch.float32, G=torch.bfloat16),
    "bfloat16_most": Policy(torch.float32, *[torch.bfloat16] * 4),
    "float16": Policy(torch.float32, *[torch.float16] * 4),
}


def autocast_to(dtype: Dtype, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to a dtype; with None, leave the surrounding autocast state unchanged.

    The cache of cast weights is disabled: a module uses each weight once, so the cache saves
    nothing, and a copy cast without gradients must not reach a pass that needs them.
    """
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=False)


class PrecisionModule(nn.Module):
    """A part of a network with a compute dtype of its own. See `autocast_to`."""

    compute_dtype: Dtype = None
    compiled_methods: ClassVar[tuple[str, ...]] = ()
    """The methods that `compile_networks` compiles."""


class Trunk(PrecisionModule, nn.Sequential):
    """Layers that start from an image and return the dtype of their input."""

    compiled_methods = ("forward_low_precision",)

    def forward(self, x: Tensor, *, double_backward: bool = False) -> Tensor:
        """Apply the layers.

        Args:
            double_backward: the gradient of this pass is differentiated again (R1, gradient
                penalty). Compute in the dtype of the weights, without compilation.
        """
        return super().forward(x) if double_backward else self.forward_low_precision(x)

    def forward_low_precision(self, x: Tensor) -> Tensor:
        with autocast_to(self.compute_dtype, x.device):
            return super().forward(x).to(x.dtype)


def precision_modules(
    networks: Mapping[str, nn.Module],
) -> Iterator[tuple[str, PrecisionModule]]:
    """Yield every precision module of some networks, with the letter of its network."""
    for letter, network in networks.items():
        for module in network.modules():
            if isinstance(module, PrecisionModule):
                yield letter, module


def set_precision(networks: Mapping[str, nn.Module], policy: Policy) -> None:
    """Set the compute dtype of all precision modules. Weights are not converted."""
    for letter, module in precision_modules(networks):
        module.compute_dtype = getattr(policy, letter)


def compile_networks(networks: Mapping[str, nn.Module], backend: str = "inductor") -> None:
    """Compile each precision module for static shapes. Weights and their names stay unchanged.

    Compiled code has no second derivative, so passes of D with `double_backward` are not compiled.
    """
    compiled = partial(torch.compile, backend=backend, dynamic=False)
    for _, module in precision_modules(networks):
        for name in module.compiled_methods:
            setattr(module, name, compiled(getattr(module, name)))
