from itertools import combinations

import pytest
import torch

from baselines import random_weights as weights
from stargan_dist.evaluation.metrics.feature_extractors import alexnet_lpips


@pytest.fixture(scope="module")
def network():
    drawn = weights.make_weights("torchvision AlexNet", weights.alexnet_features())
    return alexnet_lpips(drawn).double()


@pytest.mark.parametrize("size", [32, 64])
def test_the_mean_equals_pairwise_calls_of_the_lpips_package(network, size):
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(2, 10, 3, size, size, generator=rng, dtype=torch.float64) * 2 - 1
    for group, mean in zip(images, network(images), strict=True):
        pairs = [network.package(a[None], b[None]) for a, b in combinations(group, 2)]
        assert len(pairs) == 45
        assert float(mean) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-10)


def test_the_distance_of_equal_images_is_zero(network):
    image = torch.rand(1, 1, 3, 32, 32, dtype=torch.float64)
    assert network(image.expand(1, 10, 3, 32, 32)).abs() < 1e-12


def test_every_convolution_uses_the_weights_of_the_file():
    """A change of any layer's weights changes the distance."""
    state = weights.alexnet_features()
    images = torch.rand(1, 4, 3, 32, 32)
    before = alexnet_lpips(weights.make_weights("AlexNet", state))(images)
    for layer in (0, 3, 6, 8, 10):
        changed = {**state, f"features.{layer}.bias": state[f"features.{layer}.bias"] + 1}
        assert alexnet_lpips(weights.make_weights("AlexNet", changed))(images) != before
