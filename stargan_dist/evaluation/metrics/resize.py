"""Bilinear resizing to 8 bits that equals PIL's bit for bit, on any device.

The paper's protocol passes images through files and PIL. PIL resizes rows, rounds to 8 bits, and
then resizes columns, with weights of 22 fractional bits. All values are small integers, so float64
computes them exactly.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

FRACTION_BITS = 22  # of Pillow's weights for images of 8 bits


@lru_cache(maxsize=8)
def _weights(in_size: int, out_size: int, device: torch.device) -> Tensor:
    """Triangular filter of each output pixel over a row of inputs, integers (out_size, in_size)."""
    scale = in_size / out_size
    support = max(scale, 1.0)  # wider where the image shrinks: antialiased
    centres = (np.arange(out_size)[:, None] + 0.5) * scale
    distances = np.abs(np.arange(in_size)[None] + 0.5 - centres) / support
    weights = np.clip(1 - distances, 0, None)
    weights /= weights.sum(1, keepdims=True)
    return torch.from_numpy(np.floor(weights * 2**FRACTION_BITS + 0.5)).to(device)


def _round_to_8_bits(sums: Tensor) -> Tensor:
    """Divide weighted sums by 2**FRACTION_BITS and round them, in place."""
    return sums.add_(2 ** (FRACTION_BITS - 1)).mul_(2.0**-FRACTION_BITS).floor_().clamp_(0, 255)


def resize_bilinear(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images (N, 3, H, H) to integers in [0, 255], float64 (N, 3, size, size)."""
    pixels = images.double()
    if images.shape[-1] == size:
        return pixels
    weights = _weights(images.shape[-1], size, images.device)
    rows = _round_to_8_bits(pixels @ weights.T)
    return _round_to_8_bits(weights @ rows)
