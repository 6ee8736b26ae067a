"""Random similarities move images and landmarks alike."""

import numpy as np
import torch

from stargan_dist.faces.augmentation import SCALE, SHIFT, draw, warp


def spots(points, size):
    """Return images with a Gaussian spot at each point, (B, L, size, size)."""
    centres = torch.arange(size, dtype=torch.float32) + 0.5
    x, y = points[..., None].unbind(2)
    squares = (centres - x).square()[..., None, :] + (centres - y).square()[..., None]
    return torch.exp(-squares / 8)


def test_landmarks_move_with_the_image():
    size = 96
    points = 32 + 32 * torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(0))
    maps = draw(np.random.default_rng(0), 4, strength=2)
    images, moved = warp(spots(points, size), points, maps)
    centres = torch.arange(size) + 0.5
    mass = images.sum((2, 3))
    found = torch.stack([(images.sum(2) * centres).sum(2), (images.sum(3) * centres).sum(2)], 2)
    assert (found / mass[..., None] - moved).abs().max() < 0.05
    assert (moved - points).norm(dim=2).mean() > 4


def test_no_strength_changes_nothing():
    points, images = torch.rand(2, 3, 2) * 32, torch.rand(2, 3, 32, 32)
    warped, moved = warp(images, points, draw(np.random.default_rng(0), 2, strength=0))
    assert torch.allclose(warped, images, atol=1e-5)
    assert torch.allclose(moved, points, atol=1e-5)


def test_draws_are_within_their_ranges():
    maps = draw(np.random.default_rng(0), 500, strength=1)
    scales = maps[:, :, :2].det().sqrt()
    assert ((maps[:, :, 2].abs().amax(0) / 2 - SHIFT).abs() < 0.001).all()
    assert 1 - SCALE <= scales.min() < 1 - 0.98 * SCALE < 1 + 0.98 * SCALE < scales.max()
