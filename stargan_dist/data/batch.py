"""What one iteration consumes."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One rank's share of a global batch (SPEC of the method: arXiv 1912.01865, section 2.2).

    Images travel as uint8 (B, 3, H, H) and become floats in [-1, 1] on the device: see `to`.
    Labels are numbers of domains, int64 (B,), or vectors, float (B, `Labels.size`).
    """

    x: Tensor  # sources
    y: Tensor  # their labels
    x_ref: Tensor | None  # references of domain y_trg, drawn independently of the sources
    x_ref2: Tensor | None  # other images of the same domain; None where nothing refers to them
    y_trg: Tensor  # target labels
    z: Tensor  # (B, latent_dim) ~ N(0, I)
    z2: Tensor
    mix: Tensor  # (B,) in [0, 1): where between real and fake a gradient penalty looks

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """Move to the device; images and latents become `dtype`, images in [-1, 1]."""

        def move(t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            t = t.to(device, non_blocking=True)
            if t.dtype == torch.uint8:
                return to_unit(t, dtype)
            return t.to(dtype) if t.is_floating_point() else t

        return Batch(*map(move, self))  # type: ignore[arg-type]

    def split(self, parts: int) -> "list[Batch]":
        """Micro-batches of equal size, in order."""
        fields = ([None] * parts if t is None else t.chunk(parts) for t in self)
        return [Batch(*chunks) for chunks in zip(*fields, strict=True)]


def to_unit(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [0, 255] -> float [-1, 1]."""
    # In place: temporaries of a batch's size cost more than the arithmetic.
    return images.to(dtype).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Float [-1, 1] -> uint8 [0, 255], rounded; what lies outside is clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
