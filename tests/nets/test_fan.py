"""The landmark network, against a plain forward in float64."""

import torch

from stargan_dist.nets.fan import FAN
from tests.helpers import fan as plain


def random_network(**sizes):
    torch.manual_seed(0)
    network = FAN(**sizes).double().eval()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            positive = "running_var" in name or ".bn" in name
            random = torch.randn_like(tensor) / tensor[0].numel() ** 0.5
            tensor.copy_(torch.rand_like(tensor) if positive else random)
    return network


def test_the_published_network_has_the_documented_tensors():
    with torch.device("meta"):
        network = FAN()
    assert len(network.state_dict()) == 336
    assert sum(p.numel() for p in network.parameters()) == 6_333_603
    assert {"m0.b2_plus_1.bn3.weight", "conv4.downsample.2.weight"} <= network.state_dict().keys()


@torch.no_grad()
def test_heat_maps_equal_those_of_the_plain_network():
    network = random_network(num_maps=3, width=16, input_size=64)
    for size in (64, 48):  # the network's own, and another one that is resized
        x = torch.rand(2, 3, size, size, dtype=torch.float64) * 2 - 1
        expected = plain.heat_maps(network.state_dict(), x, 64)
        assert expected.shape == (2, 3, 16, 16)
        assert expected.std() > 0.1
        assert (network(x) - expected).abs().max() <= 1e-12 * expected.abs().max()


@torch.no_grad()
def test_the_published_sizes_equal_those_of_the_plain_network():
    network = random_network()
    x = torch.rand(1, 3, 128, 128, dtype=torch.float64) * 2 - 1
    expected = plain.heat_maps(network.state_dict(), x)
    assert expected.shape == (1, 99, 64, 64)
    assert (network(x) - expected).abs().max() <= 1e-12 * expected.abs().max()
