"""Heat maps of known landmarks, and losses, against literal numpy."""

import math

import numpy as np
import pytest
import torch

from stargan_dist.faces.points import points_of
from stargan_dist.faces.targets import LOSSES, adaptive_wing, gaussians


def test_targets_are_gaussians_at_the_points():
    points = torch.tensor([[[10.0, 22.0], [62.0, 2.0]]], dtype=torch.float64)
    expected = np.zeros((1, 2, 16, 16))
    for landmark, (x, y) in enumerate(points[0].tolist()):
        for row in range(16):
            for column in range(16):
                square = (4 * column + 2 - x) ** 2 + (4 * row + 2 - y) ** 2
                expected[0, landmark, row, column] = math.exp(-square / 16 / (2 * 1.5**2))
    maps = gaussians(points, 64, 1.5)
    np.testing.assert_allclose(maps.numpy(), expected, atol=1e-12)
    assert maps.amax((2, 3)).tolist() == [[1, 1]]  # these points are centres of pixels


def test_points_are_found_in_their_targets():
    points = 5 + 54 * torch.rand(4, 9, 2, generator=torch.Generator().manual_seed(0))
    found = points_of(gaussians(points, 64, 1.5), 64)
    assert (found - points).abs().max() <= 1 + 1e-4  # a quarter of a pixel of a map


def plain_adaptive_wing(predicted, target):
    """Return the loss element by element, from the paper's equations."""
    alpha, omega, epsilon, theta = 2.1, 14, 1, 0.5
    losses = []
    for p, y in zip(predicted.ravel(), target.ravel(), strict=True):
        power = alpha - y
        a = omega * (1 / (1 + (theta / epsilon) ** power)) * power
        a *= (theta / epsilon) ** (power - 1) * (1 / epsilon)
        c = theta * a - omega * math.log(1 + (theta / epsilon) ** power)
        error = abs(y - p)
        small = omega * math.log(1 + (error / epsilon) ** power)
        losses.append(small if error < theta else a * error - c)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("scale", [0.1, 0.6, 2.0])
def test_the_adaptive_wing_loss_is_that_of_the_paper(scale):
    rng = np.random.default_rng(0)
    target = rng.uniform(0, 1, (2, 3, 4, 4))
    predicted = target + scale * rng.standard_normal(target.shape)
    loss = adaptive_wing(torch.from_numpy(predicted), torch.from_numpy(target))
    assert abs(loss.item() - plain_adaptive_wing(predicted, target)) < 1e-12


def test_the_gradient_of_the_adaptive_wing_loss_is_continuous_at_theta_and_finite_at_zero():
    target = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    predicted = torch.stack([target, target + 0.5 - 1e-9, target + 0.5 + 1e-9]).requires_grad_()
    adaptive_wing(predicted, target.expand(3, 3)).backward()
    at_zero, below, above = predicted.grad
    assert at_zero.tolist() == [0, 0, 0]
    assert torch.allclose(below, above, rtol=1e-6) and (below > 0.1).all()


def test_the_losses_of_equal_maps_are_zero():
    maps = gaussians(torch.tensor([[[20.0, 30.0]]]), 64, 1.5)
    assert {name: loss(maps, maps).item() for name, loss in LOSSES.items()} == {
        "adaptive-wing": 0, "mse": 0,
    }  # fmt: skip
