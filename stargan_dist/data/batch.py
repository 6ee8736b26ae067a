"""The data of one training iteration."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One rank's part of a global batch (symbols as in arXiv 1912.01865, section 2.2).

    Images are uint8 (B, 3, H, H) until `to` converts them on the device to floats in [-1, 1].
    Labels are domain indices, int64 (B,), or vectors, float (B, `Labels.vector_dim`).
    """

    x: Tensor  # source images
    y: Tensor  # labels of the sources
    x_ref: Tensor | None  # references of domain y_trg, drawn independently of the sources
    x_ref2: Tensor | None  # other images of that domain; both are None without references
    y_trg: Tensor  # target labels
    z: Tensor  # (B, latent_dim) ~ N(0, I)
    z2: Tensor
    mix: Tensor  # (B,) uniform in [0, 1): weights of real images in a penalty, draws of a pool
    masks: Tensor | None = None  # of x, (B, 2, h, w) in [0, 1]: for the high-pass option of G

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """Move to the device; convert images and latents to `dtype`, images to [-1, 1]."""

        def move(t: Tensor | None) -> Tensor | None:
            if t is None:
                return None
            t = t.to(device, non_blocking=True)
            if t.dtype == torch.uint8:
                return to_unit(t, dtype)
            return t.to(dtype) if t.is_floating_point() else t

        return Batch(*map(move, self))  # type: ignore[arg-type]

    def split(self, parts: int) -> "list[Batch]":
        """Split into micro-batches of equal size, in order."""
        fields = ([None] * parts if t is None else t.chunk(parts) for t in self)
        return [Batch(*chunks) for chunks in zip(*fields, strict=True)]


def to_unit(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 in [0, 255] to float in [-1, 1]."""
    # In place: allocating temporaries of a batch's size costs more than the arithmetic.
    return images.to(dtype).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Convert float in [-1, 1] to uint8 in [0, 255]: rounded, and clamped outside the range."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
