"""The networks of CycleGAN against plain ones, and the routing of samples by their domain."""

import pytest
import torch
from torch import nn

from baselines.cyclegan import literal_patches, literal_resnet
from stargan_dist.nets import cyclegan
from stargan_dist.nets.per_domain import PerDomain
from stargan_dist.nets.precision import POLICIES, set_precision
from tests.nets.test_precision import record_dtypes


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_are_the_published_ones():
    """The authors' code prints 11.378 M for G at 256 px and 2.765 M for D, of one direction."""
    with torch.device("meta"):
        G, small, D = cyclegan.Generator(2), cyclegan.Generator(2, 128), cyclegan.Discriminator(2)
    assert count(G.to_domain[0]) == count(G) // 2 == 11_378_179
    assert count(D.of_domain[0]) == count(D) // 2 == 2_764_737
    residual = 2 * (256 * 256 * 9 + 256)
    assert count(G.to_domain[0]) - count(small.to_domain[0]) == 3 * residual


def test_d_scores_patches_of_70_pixels():
    """30 × 30 of them at 256 px. A score depends on the pixels of its patch alone."""
    D = cyclegan.PatchGAN(2, 8)
    for module in D.modules():  # norms depend on the whole image
        if isinstance(module, nn.Sequential):
            for i, layer in enumerate(module):
                module[i] = nn.Identity() if isinstance(layer, nn.InstanceNorm2d) else layer
    x = torch.randn(1, 3, 256, 256, requires_grad=True)
    scores = D(x)
    assert scores.shape == (1, 900)
    scores[0, 15 * 30 + 15].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70


def test_no_layer_of_d_is_wider_than_the_largest_width():
    D = cyclegan.PatchGAN(64, 32)
    assert {m.out_channels for m in D.trunk if isinstance(m, nn.Conv2d)} == {32}
    assert D(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(("size", "blocks"), [(32, 6), (128, 6), (256, 9)])
def test_networks_equal_the_paper_layer_by_layer(size, blocks):
    torch.manual_seed(0)
    G, D = cyclegan.Generator(2, size, 2).double(), cyclegan.Discriminator(2, 2).double()
    for parameter in [*G.parameters(), *D.parameters()]:
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.rand(2, 3, size, size, dtype=torch.float64) * 2 - 1
    for y in (0, 1):
        image = G(x, torch.eye(2, dtype=torch.float64)[[y, 1 - y]])
        scores = D(x, torch.tensor([y, 1 - y])).src
        for i, domain in enumerate((y, 1 - y)):
            resnet, patches = (
                G.to_domain[domain].state_dict(),
                D.of_domain[domain].state_dict(),
            )
            torch.testing.assert_close(image[i : i + 1], literal_resnet(resnet, x[[i]], blocks))
            torch.testing.assert_close(scores[i : i + 1], literal_patches(patches, x[[i]]))


def test_weights_are_normal_with_deviation_0_02_and_biases_zero():
    torch.manual_seed(0)
    for name, parameter in cyclegan.Discriminator(2, 16).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() > 10_000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)


def test_layers_that_produce_images_and_scores_compute_in_the_dtype_of_the_weights():
    nets = {"G": cyclegan.Generator(2, 32, 2), "D": cyclegan.Discriminator(2, 2)}
    set_precision(nets, POLICIES["bfloat16_most"])
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([1, 0])
    image, dtypes = record_dtypes(nets["G"], x, torch.eye(2)[y])
    output, dtypes_of_d = record_dtypes(nets["D"], x, y)
    assert image.dtype == output.src.dtype == torch.float32
    assert dtypes.convolutions == dtypes_of_d.convolutions == {torch.float32, torch.bfloat16}


# Routing.


def make_per_domain():
    networks = PerDomain(3, lambda: nn.Linear(2, 2))
    for domain, network in enumerate(networks):
        nn.init.eye_(network.weight)
        nn.init.constant_(network.bias, 10.0 * domain)
    return networks


@pytest.mark.parametrize(
    ("training", "y"),
    [(True, [2, 0, 1, 1, 2, 0]), (False, [1, 1, 0, 1]), (False, [2]), (False, [0, 2, 2])],
)
def test_each_sample_passes_through_the_network_of_its_domain(training, y):
    networks, y = make_per_domain().train(training), torch.tensor(y)
    x = torch.arange(2.0 * len(y)).view(-1, 2)
    assert torch.equal(networks(x, y), x + 10 * y[:, None])


def test_every_network_takes_part_in_training_and_gets_the_gradient_of_its_samples():
    networks, x = make_per_domain(), torch.ones(6, 2, requires_grad=True)
    networks(x, torch.tensor([2, 0, 1, 1, 2, 0])).mul(torch.arange(6.0)[:, None]).sum().backward()
    assert [network.bias.grad[0].item() for network in networks] == [1 + 5, 2 + 3, 0 + 4]
    assert x.grad[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("training", [True, False])
def test_further_inputs_are_routed_with_the_first(training):
    class Weighted(nn.Linear):
        def forward(self, x, weight):
            return super().forward(x) * weight

    networks = PerDomain(3, lambda: Weighted(2, 2)).train(training)
    x, weight, y = torch.randn(6, 2), torch.randn(6, 1), torch.tensor([2, 0, 1, 1, 2, 0])
    expected = [networks[y[i]](x[[i]], weight[[i]]) for i in range(6)]
    torch.testing.assert_close(networks(x, y, weight), torch.cat(expected))


def test_an_exported_graph_routes_any_batch():
    networks = make_per_domain().eval()
    example = (torch.zeros(2, 2), torch.tensor([0, 1]))
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(networks, example, dynamic_shapes=(batch, batch)).module()
    x, y = torch.arange(8.0).view(4, 2), torch.tensor([2, 2, 0, 1])
    assert torch.equal(program(x, y), networks(x, y))
