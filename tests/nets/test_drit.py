"""The networks of DRIT against plain ones."""

import pytest
import torch
from torch import nn

from baselines.drit import (
    literal_attribute,
    literal_content,
    literal_content_logits,
    literal_image,
    literal_logits,
)
from stargan_dist.nets import drit
from stargan_dist.nets.blocks import Encoded
from stargan_dist.nets.precision import POLICIES, set_precision
from tests.nets.test_precision import record_dtypes

Z = 3  # length of an attribute


def count(network):
    return sum(p.numel() for p in network.parameters())


def perturbed(network):
    """Return a network in float64 whose biases and norms matter."""
    network = network.double().eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def images(size, number=2):
    return torch.rand(number, 3, size, size, dtype=torch.float64) * 2 - 1


def test_parameter_counts_are_the_published_ones():
    """Summed by hand over the layers of the authors' program, with attributes of length 8."""
    with torch.device("meta"):
        G, E = drit.Generator(2, 8), drit.AttributeEncoder(2, 8)
        D, C = drit.Discriminator(2, 2), drit.ContentDiscriminator()
    residual = 2 * (256 * 256 * 9 + 256)
    encoder = (3 * 64 * 49 + 64) + (64 * 128 * 9 + 128) + (128 * 256 * 9 + 256) + 3 * residual
    decoder = (
        3 * 2 * (264 * 264 * 9 + 264)
        + (272 * 136 * 9 + 3 * 136)
        + (144 * 72 * 9 + 3 * 72)
        + (80 * 3 + 3)
    )
    assert count(G) == 2 * (encoder + decoder + residual) == 18_582_822
    blocks = ((64, 128), (128, 192), (192, 256))
    of_blocks = sum((a * a + a * b) * 9 + a + b + a * b + b for a, b in blocks)
    assert count(E) == 2 * (3 * 64 * 16 + 64 + of_blocks + 2 * (256 * 8 + 8)) == 2_688_160
    logits = sum(a * b * 16 + b for a, b in ((3, 64), (64, 128), (128, 256), (256, 512))) + 513
    assert count(D) == 2 * 2 * 3 * logits == 33_084_684
    assert count(C) == 3 * (256 * 256 * 49 + 256) + (256 * 256 * 16 + 256) + 257 == 10_683_649


@pytest.mark.parametrize("size", [32, 64])
def test_g_and_e_equal_plain_ones(size):
    torch.manual_seed(0)
    G, E = perturbed(drit.Generator(2, Z, 2)), perturbed(drit.AttributeEncoder(2, Z, 2))
    x, z, y = images(size), torch.randn(2, Z).double(), torch.tensor([1, 0])
    encoder, decoder = G.encoder.state_dict(), G.decoder.state_dict()
    contents = [literal_content(encoder, d, x[[i]]) for i, d in enumerate(y)]
    encoded = G.encode(x, None, y)
    close(encoded.bottleneck, torch.cat(contents))
    for targets in (y, 1 - y):
        fakes = [literal_image(decoder, d, contents[i], z[[i]]) for i, d in enumerate(targets)]
        c = torch.cat([torch.eye(2, dtype=torch.float64)[targets], z], 1)
        close(G.decode(encoded, c), torch.cat(fakes))
    # Without its domain, a source is encoded as one of the domain that is not its target.
    close(G(x, torch.cat([torch.eye(2, dtype=torch.float64)[1 - y], z], 1)), torch.cat(fakes))
    attributes = [
        torch.cat(literal_attribute(E.of_domain[d].state_dict(), x[[i]]), 1)
        for i, d in enumerate(y)
    ]
    close(E(x, y), torch.cat(attributes))


def close(tensor, expected):
    assert (tensor - expected).abs().max() <= 1e-12


@pytest.mark.parametrize(("size", "scales"), [(32, 2), (64, 3), (128, 3)])
def test_d_equals_a_plain_one_for_each_guide(size, scales):
    torch.manual_seed(0)
    D = perturbed(drit.Discriminator(2, 2, size, 2, 8))
    x, y = images(size), torch.tensor([1, 0])
    assert len(D) == 2
    for of_guide in D:
        outputs = of_guide(x, y)
        expected = [
            literal_logits(of_guide.state_dict(), d, x[[i]], scales) for i, d in enumerate(y)
        ]
        for logits, of_images in zip(outputs.scales, zip(*expected, strict=True), strict=True):
            close(logits, torch.cat(of_images))


@pytest.mark.parametrize(
    ("size", "halvings", "patches"), [(32, 1, 1), (64, 2, 1), (128, 3, 1), (216, 3, 1), (256, 3, 4)]
)
def test_c_equals_a_plain_one(size, halvings, patches):
    torch.manual_seed(0)
    C = perturbed(drit.ContentDiscriminator(size, 1))
    content = torch.randn(2, 4, size // 4, size // 4).double()
    logits = C(content)
    assert logits.shape == (2, patches)
    close(logits, literal_content_logits(C.state_dict(), content, halvings))


def test_a_decoder_of_two_candidates_takes_the_other_domain():
    torch.manual_seed(0)
    G, x = drit.Generator(2, Z, 2).eval(), images(32).float()
    encoded, c = G.encode(x), torch.cat([torch.eye(2), torch.randn(2, Z)], 1)
    assert encoded.candidates == G.candidates == 2
    halves = encoded.bottleneck.chunk(2, 1)
    expected = [G.decode(Encoded(halves[1 - i][[i]], {}), c[[i]]) for i in (0, 1)]
    assert torch.allclose(G.decode(encoded, c), torch.cat(expected), atol=1e-6)


def test_weights_of_convolutions_are_normal_with_deviation_0_02():
    torch.manual_seed(0)
    for network in (drit.Generator(2, 8, 16), drit.Discriminator(2, 2, 64, 16)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                assert module.bias.any()
                if module.weight.numel() > 10_000:
                    assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_layers_that_produce_images_logits_and_attributes_compute_in_the_dtype_of_the_weights():
    nets = {
        "G": drit.Generator(2, Z, 2),
        "E": drit.AttributeEncoder(2, Z, 2),
        "D": drit.Discriminator(2, 2, 32, 2)[0],
        "C": drit.ContentDiscriminator(32, 2),
    }
    set_precision(nets, POLICIES["bfloat16_most"])
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([1, 0])
    c = torch.cat([torch.eye(2)[y], torch.randn(2, Z)], 1)
    both = {torch.float32, torch.bfloat16}
    for letter, inputs in (("G", (x, c)), ("D", (x, y)), ("C", (torch.rand(2, 8, 8, 8),))):
        output, dtypes = record_dtypes(nets[letter], *inputs)
        output = output.src if letter == "D" else output
        assert output.dtype == torch.float32
        assert dtypes.convolutions == both
    attributes, dtypes = record_dtypes(nets["E"], x, y)
    assert attributes.dtype == torch.float32
    assert (dtypes.convolutions, dtypes.linear) == ({torch.bfloat16}, {torch.float32})
