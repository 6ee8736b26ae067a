"""The networks of StarGAN against the tables of its paper (arXiv 1711.09020, tables 4 and 5)."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from stargan_dist.nets import v1


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_are_those_of_the_papers_networks():
    """Counted by hand for five attributes at 128 px.

    G has convolutions without biases, and norms with two parameters per channel. D has convolutions
    with biases, except for its heads.
    """
    with torch.device("meta"):
        G, D = v1.Generator(5), v1.Discriminator(5, 128)
    down = 8 * 64 * 49 + 64 * 128 * 16 + 128 * 256 * 16
    residual = 6 * 2 * (256 * 256 * 9 + 2 * 256)
    up = 256 * 128 * 16 + 128 * 64 * 16 + 64 * 3 * 49
    norms = 2 * (64 + 128 + 256) + 2 * (128 + 64)
    assert count(G) == down + residual + up + norms == 8_430_528
    widths = [3, 64, 128, 256, 512, 1024, 2048]
    trunk = sum(16 * a * b + b for a, b in pairwise(widths))
    assert count(D) == trunk + 2048 * 9 + 2048 * 5 * 4 == 44_762_048


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_outputs_have_the_documented_shapes(size):
    G, D = v1.Generator(3, 2), v1.Discriminator(3, size, 2)
    x = G(torch.zeros(2, 3, size, size), torch.eye(3)[:2])
    src, cls, _ = D(x)
    assert x.shape == (2, 3, size, size)
    patches = max(1, size // 64) ** 2
    assert (src.shape, cls.shape) == ((2, patches), (2, 3))


def instance_norm(h, norm):
    return F.instance_norm(h, weight=norm.weight, bias=norm.bias)


def literal_generator(G, x, c):
    """Compute G from its weights, layer by layer as in table 4."""
    label = c[:, :, None, None].repeat(1, 1, x.shape[2], x.shape[3])
    h = torch.cat([x, label], 1)
    layers = list(G.body)
    strides = [(1, 3), (2, 1), (2, 1)]
    for i, (stride, padding) in enumerate(strides):
        h = F.conv2d(h, layers[3 * i].weight, stride=stride, padding=padding)
        h = F.relu(instance_norm(h, layers[3 * i + 1]))
    for block in layers[9:15]:
        first, norm, _, second, norm2 = block.main
        r = F.relu(instance_norm(F.conv2d(h, first.weight, padding=1), norm))
        h = h + instance_norm(F.conv2d(r, second.weight, padding=1), norm2)
    for i in (15, 18):
        h = F.conv_transpose2d(h, layers[i].weight, stride=2, padding=1)
        h = F.relu(instance_norm(h, layers[i + 1]))
    assert len(layers) == 21
    return torch.tanh(F.conv2d(h, G.to_rgb[0].weight, padding=3))


def literal_discriminator(D, x):
    """Compute D from its weights, layer by layer as in table 5."""
    h = x
    convolutions = list(D.trunk)[::2]
    for conv in convolutions:
        h = F.conv2d(h, conv.weight, conv.bias, stride=2, padding=1)
        h = torch.where(h > 0, h, 0.01 * h)
    return F.conv2d(h, D.src.weight, padding=1).flatten(1), F.conv2d(h, D.cls.weight).flatten(1)


def test_networks_equal_the_tables_layer_by_layer():
    torch.manual_seed(0)
    G, D = v1.Generator(3, 4).double(), v1.Discriminator(3, 64, 4).double()
    for parameter in G.parameters():  # norms are initialised as identities
        parameter.data += 0.1 * torch.randn_like(parameter)
    x, c = torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2]
    torch.testing.assert_close(G(x, c), literal_generator(G, x, c))
    for ours, literal in zip(D(x)[:2], literal_discriminator(D, x), strict=True):
        torch.testing.assert_close(ours, literal)


def test_the_label_reaches_the_border():
    """With reflection padding it would not."""
    torch.manual_seed(0)
    G, x = v1.Generator(2, 4), torch.rand(1, 3, 32, 32)
    one, other = (G(x, c[None]) for c in torch.eye(2))
    assert (one - other)[:, :, 0].abs().max() > 1e-4
