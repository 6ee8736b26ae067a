"""The blocks of StarGAN v2 against their formulas and against the literal blocks (baselines/)."""

import math

import pytest
import torch
import torch.nn.functional as F

from baselines import networks as literal
from stargan_dist.nets import blocks
from stargan_dist.nets.blocks import (
    AdaIN,
    AdaINResBlock,
    ConvDownsample,
    HighPass,
    ResBlock,
    StackedLinear,
    UpsampleConv,
)
from stargan_dist.nets.fusing import fuse_kernels
from stargan_dist.nets.v2 import Generator, StyleEncoder


def test_stacked_linear_equals_one_linear_layer_per_domain():
    torch.manual_seed(0)
    layer = StackedLinear(3, 5, 4).double()
    x, y = torch.randn(7, 5).double(), torch.tensor([0, 2, 1, 1, 0, 2, 2])
    torch.nn.init.normal_(layer.bias)
    expected = [F.linear(x[i], layer.weight[y[i]], layer.bias[y[i]]) for i in range(7)]
    torch.testing.assert_close(layer(x, y), torch.stack(expected))


def test_stacked_linear_keeps_every_domain_in_the_graph():
    layer = StackedLinear(3, 5, 4)
    layer(torch.randn(2, 5), torch.tensor([0, 0])).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad[0].abs().sum() > 0
    assert layer.weight.grad[1:].abs().sum() == 0


def test_stacked_linear_has_he_normal_weights_and_zero_biases():
    torch.manual_seed(0)
    layer = StackedLinear(50, 128, 64)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.01)
    assert layer.bias.abs().sum() == 0


def test_adain_sets_the_mean_and_scale_of_each_channel():
    torch.manual_seed(0)
    norm = AdaIN(style_dim=6, channels=4).double()
    x, s = torch.randn(2, 4, 9, 9).double() * 3 + 1, torch.randn(2, 6).double()
    gamma, beta = norm.affine(s).chunk(2, dim=1)
    out = norm(x, s)
    torch.testing.assert_close(out.mean((2, 3)), beta)
    torch.testing.assert_close(
        out.std((2, 3), correction=0), (1 + gamma).abs(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("downsample", [True, False])
@pytest.mark.parametrize("dim_out", [4, 6])
def test_residual_block_equals_the_literal_one(normalize, downsample, dim_out):
    torch.manual_seed(0)
    block = ResBlock(4, dim_out, normalize=normalize, downsample=downsample).double()
    x = torch.randn(2, 4, 8, 8).double()
    torch.testing.assert_close(block(x), literal.res_block(block, x))


@pytest.mark.parametrize("upsample", [True, False])
@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("dim_out", [2, 4])
def test_decoder_block_equals_the_literal_one(upsample, shortcut, dim_out):
    torch.manual_seed(0)
    block = AdaINResBlock(4, dim_out, 3, upsample=upsample, shortcut=shortcut).double()
    x, s = torch.randn(2, 4, 8, 8).double(), torch.randn(2, 3).double()
    torch.testing.assert_close(block(x, s), literal.adain_res_block(block, x, s))


@pytest.mark.parametrize("size", [2, 6])
def test_fused_convolutions_equal_convolution_and_resizing(size):
    """Outputs, including the border, and all gradients are equal in float64."""
    torch.manual_seed(0)
    convolve = torch.nn.Conv2d.forward
    literal_forms = {
        blocks.ConvDownsample: lambda layer, x: blocks.downsample(convolve(layer, x)),
        blocks.UpsampleConv: lambda layer, x: convolve(layer, blocks.upsample(x)),
    }
    for kind, literal_form in literal_forms.items():
        layer = kind(3, 5, 3, 1, 1).double()
        x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
        ours, theirs = layer(x), literal_form(layer, x)
        torch.testing.assert_close(ours, theirs)
        inputs = (x, layer.weight, layer.bias)
        weights = torch.randn_like(ours)
        for a, b in zip(
            torch.autograd.grad((ours * weights).sum(), inputs),
            torch.autograd.grad((theirs * weights).sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_high_pass_is_the_laplacian_of_each_channel():
    x = torch.zeros(1, 2, 5, 5)
    x[0, 1, 2, 2] = 1
    out = HighPass(w_hpf=2)(x)
    assert out[0, 0].abs().sum() == 0
    assert out[0, 1, 2, 2] == 4
    assert out[0, 1, 1:4, 1:4].sum() == 0
    assert HighPass(1)(torch.ones(1, 1, 5, 5))[0, 0, 2, 2] == 0


def test_kernels_fused_once_give_the_same_bits():
    torch.manual_seed(0)
    networks = {"G": Generator(32, 6, 4, 8), "E": StyleEncoder(2, 32, 6, 4, 8)}
    x, s, y = torch.randn(2, 3, 32, 32), torch.randn(2, 6), torch.tensor([0, 1])
    with torch.no_grad():
        before = networks["G"](x, s), networks["E"](x, y)
        for network in networks.values():
            fuse_kernels(network)
        after = networks["G"](x, s), networks["E"](x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    layers = [type(m) for network in networks.values() for m in network.modules()]
    assert ConvDownsample not in layers
    assert UpsampleConv not in layers
