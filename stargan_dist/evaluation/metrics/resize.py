"""Resizing to 8 bits as PIL does it, on any device.

The paper's protocol passes images through files and PIL. PIL resizes rows, rounds to 8 bits, and
then columns, with weights of 22 fractional bits. Those are small integers, so float64 computes
them exactly, and the result equals PIL's bit for bit.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

FRACTION_BITS = 22  # of Pillow's weights for images of 8 bits


@lru_cache(maxsize=8)
def _weights(size: int, to: int, device: torch.device) -> Tensor:
    """The triangular filter of each output pixel over a line of inputs: integers (to, size)."""
    scale = size / to
    support = max(scale, 1.0)  # wider where the image shrinks: antialiased
    centres = (np.arange(to)[:, None] + 0.5) * scale
    distances = np.abs(np.arange(size)[None] + 0.5 - centres) / support
    weights = np.clip(1 - distances, 0, None)
    weights /= weights.sum(1, keepdims=True)
    return torch.from_numpy(np.floor(weights * 2**FRACTION_BITS + 0.5)).to(device)


def _rounded(sums: Tensor) -> Tensor:
    return sums.add_(2 ** (FRACTION_BITS - 1)).mul_(2.0**-FRACTION_BITS).floor_().clamp_(0, 255)


def resize_bilinear(images: Tensor, to: int) -> Tensor:
    """uint8 (N, 3, H, H) -> integers 0 to 255 as float64 (N, 3, to, to)."""
    pixels = images.double()
    if images.shape[-1] == to:
        return pixels
    weights = _weights(images.shape[-1], to, images.device)
    lines = _rounded(pixels @ weights.T)
    return _rounded(weights @ lines)
