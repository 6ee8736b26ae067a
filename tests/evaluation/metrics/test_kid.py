import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from stargan_dist.evaluation.metrics.kid import kernel_distance


def features(n, seed, shift=0.0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 16, generator=rng, dtype=torch.float64) + shift


def test_the_kernel_distance_equals_that_of_torchmetrics():
    a, b = features(20, 0), features(20, 1, shift=0.5)
    assert kernel_distance(a, b) == pytest.approx(float(poly_mmd(a, b)), rel=1e-12)


def test_the_kernel_distance_is_unbiased():
    """It averages to 0 over samples of unequal sizes from one distribution."""
    distances = torch.tensor([
        kernel_distance(features(5, 2 * i), features(9, 2 * i + 1)) for i in range(400)
    ])  # fmt: skip
    standard_error = distances.std() / len(distances) ** 0.5
    assert abs(distances.mean()) < 3 * standard_error
    assert kernel_distance(features(5, 0), features(9, 1, shift=1)) > 10 * standard_error
