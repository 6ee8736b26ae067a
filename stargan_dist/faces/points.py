"""Landmarks as points, from heat maps."""

import torch
from torch import Tensor


def points_of(heat_maps: Tensor, size: int) -> Tensor:
    """Return the landmarks (B, L, 2) of heat maps (B, L, h, h) as x, y in pixels of an image.

    The maximum of a map, a quarter of a pixel towards the larger neighbour in each axis where it is
    not at the border, plus half a pixel (arXiv 1904.07399, its public implementation).

    Args:
        size: width and height of the image.
    """
    side = heat_maps.shape[3]
    best = heat_maps.flatten(2).argmax(2)
    column, row = best % side, best // side
    inside = (column > 0) & (column < side - 1) & (row > 0) & (row < side - 1)

    def heat(dx: int, dy: int) -> Tensor:
        x, y = (column + dx).clamp(0, side - 1), (row + dy).clamp(0, side - 1)
        return heat_maps.flatten(2).gather(2, (y * side + x)[:, :, None])[:, :, 0]

    slope = torch.stack([heat(1, 0) - heat(-1, 0), heat(0, 1) - heat(0, -1)], 2)
    offset = torch.where(inside[:, :, None], 0.25 * slope.sign(), 0)
    return (torch.stack([column, row], 2) + offset + 0.5) * (size / side)


def num_landmarks(num_maps: int) -> int:
    """Return the landmarks of a network: the last of the published 99 maps is a boundary."""
    return 98 if num_maps == 99 else num_maps
