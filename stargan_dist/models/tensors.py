"""Checks and hashes of a network's tensors."""

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from stargan_dist.errors import UserError

SHOWN_NAMES = 3  # in an error


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of all tensors with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_shapes(where: str, tensors: dict[str, Tensor], expected: dict[str, torch.Size]) -> None:
    """Check that the tensors of a network have the expected names and shapes.

    Raises:
        UserError: some are missing, left over or of another shape. Names the first of them.
    """
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    differing = [
        f"{name} ({_shape(tensors[name].shape)} instead of {_shape(expected[name])})"
        for name in tensors.keys() & expected.keys()
        if tensors[name].shape != expected[name]
    ]
    faults = {
        "lacks {}": missing,
        "has {}, unknown to this network": unknown,
        "has other shapes: {}": differing,
    }
    shown = [text.format(some_names(names)) for text, names in faults.items() if names]
    if shown:
        raise UserError(f"{where} {'; it '.join(shown)}")


def _shape(shape: torch.Size) -> str:
    return "×".join(map(str, shape)) or "scalar"


def some_names(names: Collection[str]) -> str:
    """Return the first of some names, and how many more there are."""
    first = sorted(names)[:SHOWN_NAMES]
    rest = len(names) - len(first)
    return ", ".join(first) + (f" and {rest} more" if rest else "")
