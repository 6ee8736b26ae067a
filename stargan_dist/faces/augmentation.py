"""Random similarities of images with landmarks: small shifts, rotations and scales."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Of strength 1: uniform in ± these.
SHIFT = 0.05  # of the width
ROTATION = math.radians(10)
SCALE = 0.1


def draw(rng: np.random.Generator, count: int, strength: float) -> Tensor:
    """Draw maps of output to input coordinates, float32 (count, 2, 3).

    Coordinates are those of `affine_grid`, in [-1, 1].
    """
    x, y, angle, scale = rng.uniform(-strength, strength, (4, count))
    angle, scale = ROTATION * angle, 1 + SCALE * scale
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    rows = [[cos, -sin, 2 * SHIFT * x], [sin, cos, 2 * SHIFT * y]]
    return torch.from_numpy(np.array(rows).transpose(2, 0, 1)).float()


def warp(images: Tensor, points: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Move images (B, 3, S, S) and landmarks (B, L, 2) in pixels by maps (B, 2, 3) of `draw`.

    Beyond its border an image continues with the values there.
    """
    size = images.shape[3]
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    inputs = 2 * points / size - 1
    outputs = torch.linalg.solve(maps[:, :, :2], (inputs - maps[:, None, :, 2]).transpose(1, 2))
    return warped, (outputs.transpose(1, 2) + 1) * size / 2
