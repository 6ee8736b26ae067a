"""Mixed precision: which part of which network computes in which dtype, as a table.

A part is a module (or a method of one) that computes under its own autocast and gives back what
it was given: so styles, logits and losses, which lie between the parts, are float32, and so are
weights, gradients and what optimizers keep. What no row names computes as its weights are.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

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


def computing(dtype: Dtype, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to a dtype; None: whatever is the case around it.

    Autocast's cache of lowered weights is off: a part uses each weight once, so there is nothing
    to gain, and no copy made without gradients can meet a pass that needs them.
    """
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=False)
