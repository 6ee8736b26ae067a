"""The networks of MUNIT against plain ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines import munit as plain
from stargan_dist.nets import munit
from stargan_dist.nets.precision import POLICIES, set_precision
from tests.nets.test_precision import record_dtypes

TOLERANCE = {"rtol": 0, "atol": 1e-12}


def count(network):
    return sum(p.numel() for p in network.parameters())


def with_random_biases(network):
    """Return a network in float64 whose biases and scales differ from their initial values."""
    for parameter in network.double().parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def test_parameter_counts_are_those_of_the_published_layers():
    """Of each domain, at any size of images: 7 × 7, 4 × 4, 3 × 3 and 5 × 5 convolutions."""
    with torch.device("meta"):
        G, E, D = munit.Generator(2), munit.StyleEncoder(2), munit.Discriminator(2)

    def conv(dim_in, dim_out, kernel):
        return dim_in * dim_out * kernel**2 + dim_out

    down = conv(3, 64, 7) + conv(64, 128, 4) + conv(128, 256, 4)
    residual = 4 * 2 * conv(256, 256, 3)
    up = conv(256, 128, 5) + 2 * 128 + conv(128, 64, 5) + 2 * 64 + conv(64, 3, 7)
    mlp = conv(8, 256, 1) + conv(256, 256, 1) + conv(256, 4 * 2 * 2 * 256, 1)
    patches = conv(3, 64, 4) + conv(64, 128, 4) + conv(128, 256, 4) + conv(256, 512, 4)
    assert count(G.encoder[0]) == down + residual == 5_385_856
    assert count(G.decoder[1]) == residual + up + mlp == 6_875_395
    style = count(E.of_domain[0])
    assert style == down + 2 * conv(256, 256, 4) + conv(256, 8, 1) == 2_764_936
    assert [count(scale) for scale in D.scales] == 3 * [2 * (patches + conv(512, 1, 1))]
    assert (count(G), count(E), count(D)) == (24_522_502, 5_529_872, 16_542_342)


@pytest.mark.parametrize("size", [32, 64])
def test_networks_equal_the_paper_layer_by_layer(size):
    torch.manual_seed(0)
    G, E = map(with_random_biases, (munit.Generator(2, 5, 2), munit.StyleEncoder(2, 5, 2)))
    x = torch.rand(2, 3, size, size, dtype=torch.float64) * 2 - 1
    s = torch.randn(2, 5, dtype=torch.float64)
    for y in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        encoded = G.encode(x, None, y)
        image = G.decode(encoded, torch.cat([torch.eye(2, dtype=s.dtype)[1 - y], s], 1))
        styles = E(x, y)
        for i, domain in enumerate(y.tolist()):
            encoder, own = G.encoder[domain].state_dict(), E.of_domain[domain].state_dict()
            decoder = G.decoder[1 - domain].state_dict()
            content = plain.literal_content(encoder, x[[i]])
            expected = plain.literal_decoder(decoder, content, s[[i]])
            torch.testing.assert_close(encoded.bottleneck[[i]], content, **TOLERANCE)
            torch.testing.assert_close(image[[i]], expected, **TOLERANCE)
            torch.testing.assert_close(styles[[i]], plain.literal_style(own, x[[i]]), **TOLERANCE)


@pytest.mark.parametrize(("size", "scales"), [(32, 2), (64, 3), (128, 3)])
def test_d_equals_the_paper_at_each_resolution(size, scales):
    torch.manual_seed(0)
    D = with_random_biases(munit.Discriminator(2, size, 2, 8))
    x, y = torch.rand(2, 3, size, size, dtype=torch.float64) * 2 - 1, torch.tensor([1, 0])
    outputs, image = D(x, y).scales, x
    assert len(outputs) == len(D.scales) == scales
    for scale, scores in zip(D.scales, outputs, strict=True):
        assert scores.shape == (2, (image.shape[2] // 16) ** 2)
        for i, domain in enumerate(y.tolist()):
            expected = plain.literal_patches(scale[domain].state_dict(), image[[i]])
            torch.testing.assert_close(scores[[i]], expected, **TOLERANCE)
        image = plain.halved(image)


def test_d_scores_patches_of_46_pixels():
    D, x = munit.Discriminator(2, 256, 2), torch.randn(1, 3, 256, 256, requires_grad=True)
    D.scales[0][0](x)[0, 7 * 16 + 7].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 46


def test_a_source_of_unknown_domain_is_encoded_as_an_image_of_the_other_domain():
    torch.manual_seed(0)
    G = munit.Generator(2, 4, 2).double().eval()
    x, y = torch.rand(3, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 1])
    c = torch.cat([F.one_hot(1 - y, 2), torch.randn(3, 4, dtype=torch.float64)], 1)
    known = G.decode(G.encode(x, None, y), c)
    torch.testing.assert_close(G(x, c), known, **TOLERANCE)
    assert (G.decode(G.encode(x, None, 1 - y), c) - known).abs().max() > 0.1


def test_weights_begin_as_in_the_authors_program():
    """Kaiming's for encoders and decoders, a deviation of 0.02 for D, no biases; scales of layer
    norms in [0, 1)."""
    torch.manual_seed(0)
    G, E, D = munit.Generator(2), munit.StyleEncoder(2), munit.Discriminator(2)
    for network in (G, E, D):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                assert not module.bias.any()
                fan_in = module.weight[0].numel()
                std = 0.02 if network is D else (2 / fan_in) ** 0.5
                if module.weight.numel() > 10_000:
                    assert module.weight.std().item() == pytest.approx(std, rel=0.05)
            if isinstance(module, munit.LayerNorm):
                assert 0 <= module.weight.min() < 0.1
                assert 0.9 < module.weight.max() < 1


def test_layers_that_produce_images_styles_and_scores_compute_in_the_dtype_of_the_weights():
    networks = {"G": munit.Generator(2, 4, 2), "E": munit.StyleEncoder(2, 4, 2)}
    networks["D"] = munit.Discriminator(2, 32, 2)
    set_precision(networks, POLICIES["bfloat16_most"])
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([1, 0])
    c = torch.cat([torch.eye(2)[y], torch.randn(2, 4)], 1)
    image, dtypes = record_dtypes(networks["G"], x, c)
    style, dtypes_of_e = record_dtypes(networks["E"], x, y)
    output, dtypes_of_d = record_dtypes(networks["D"], x, y)
    assert {image.dtype, style.dtype, *(s.dtype for s in output.scales)} == {torch.float32}
    for recorded in (dtypes, dtypes_of_e, dtypes_of_d):
        assert recorded.convolutions == {torch.float32, torch.bfloat16}


def test_layer_norm_does_not_round_statistics_to_bfloat16():
    norm, x = munit.LayerNorm(2), torch.randn(1, 2, 8, 8) + 100
    low = norm(x.bfloat16()).float()
    assert (low - norm(x.bfloat16().float())).abs().max() < 0.01
