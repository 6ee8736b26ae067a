import math

import pytest
import torch
import torch.nn.functional as F

from stargan_dist.nets.blocks import AdaIN, AdaINResBlock, HighPass, ResBlock, StackedLinear


def test_stacked_linear_is_one_linear_per_domain():
    torch.manual_seed(0)
    layer = StackedLinear(3, 5, 4).double()
    x, y = torch.randn(7, 5).double(), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    torch.nn.init.normal_(layer.bias)
    each = [F.linear(x[i], layer.weight[y[i]], layer.bias[y[i]]) for i in range(7)]
    torch.testing.assert_close(layer(x, y), torch.stack(each))


def test_stacked_linear_keeps_every_domain_in_the_graph():
    layer = StackedLinear(3, 5, 4)
    layer(torch.randn(2, 5), torch.tensor([0, 0])).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad[0].abs().sum() > 0
    assert layer.weight.grad[1:].abs().sum() == 0


def test_stacked_linear_starts_he_normal():
    torch.manual_seed(0)
    layer = StackedLinear(50, 128, 64)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.01)
    assert layer.bias.abs().sum() == 0


def test_adain_sets_mean_and_scale():
    torch.manual_seed(0)
    norm = AdaIN(style_dim=6, channels=4).double()
    x, s = torch.randn(2, 4, 9, 9).double() * 3 + 1, torch.randn(2, 6).double()
    gamma, beta = norm.affine(s).chunk(2, dim=1)
    out = norm(x, s)
    torch.testing.assert_close(out.mean((2, 3)), beta)
    torch.testing.assert_close(
        out.std((2, 3), correction=0), (1 + gamma).abs(), rtol=1e-4, atol=1e-5
    )


def test_residual_block_is_shortcut_plus_residual():
    torch.manual_seed(0)
    block = ResBlock(4, 6, downsample=True).double()
    x = torch.randn(2, 4, 8, 8).double()
    h = F.conv2d(F.leaky_relu(x, 0.2), block.conv1.weight, block.conv1.bias, padding=1)
    h = F.leaky_relu(F.avg_pool2d(h, 2), 0.2)
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = F.avg_pool2d(F.conv2d(x, block.conv1x1.weight), 2)
    torch.testing.assert_close(block(x), (shortcut + h) / math.sqrt(2))


def test_decoder_block_without_shortcut_is_its_residual():
    torch.manual_seed(0)
    block = AdaINResBlock(4, 2, 3, upsample=True, shortcut=False)
    x, s = torch.randn(1, 4, 8, 8), torch.randn(1, 3)
    assert block(x, s).shape == (1, 2, 16, 16)
    block.shortcut = True
    with_shortcut = block(x, s)
    block.shortcut = False
    up = block.conv1x1(F.interpolate(x, scale_factor=2))
    torch.testing.assert_close(with_shortcut, (up + block(x, s)) / math.sqrt(2))


def test_high_pass_is_the_laplacian_of_each_channel():
    x = torch.zeros(1, 2, 5, 5)
    x[0, 1, 2, 2] = 1
    out = HighPass(w_hpf=2)(x)
    assert out[0, 0].abs().sum() == 0
    assert out[0, 1, 2, 2] == 4
    assert out[0, 1, 1:4, 1:4].sum() == 0
    assert HighPass(1)(torch.ones(1, 1, 5, 5))[0, 0, 2, 2] == 0
