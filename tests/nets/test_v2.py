"""The networks of StarGAN v2: parameter counts, shapes, forms of F, and the high-pass option."""

import pytest
import torch

from stargan_dist.config import ModelConfig
from stargan_dist.data.labels import domain_labels
from stargan_dist.nets.v2 import MAPPING_FORMS, Generator, MappingNetwork
from stargan_dist.objectives import recipes


def count(module):
    return sum(p.numel() for p in module.parameters())


def build_on_meta(num_domains, **model):
    labels = domain_labels([str(number) for number in range(num_domains)])
    with torch.device("meta"):
        return recipes.TABLE["f"].build_networks(labels, ModelConfig(**model))


def test_parameter_counts_are_the_published_ones():
    counts = {letter: count(net) for letter, net in build_on_meta(2, w_hpf=1).items()}
    assert counts == {"G": 43_467_395, "F": 2_438_272, "E": 20_916_928, "D": 20_852_290}


def test_another_domain_adds_only_the_parameters_of_its_branches_and_heads():
    two, three = build_on_meta(2), build_on_meta(3)
    added = {letter: count(three[letter]) - count(two[letter]) for letter in two}
    assert added == {"G": 0, "F": 820_800, "E": 32_832, "D": 513}


def test_the_conditional_form_stays_small_with_thousands_of_domains():
    nets = build_on_meta(3000, mapping="conditional")
    assert count(nets["F"]) < 2e6
    assert count(nets["D"]) - count(build_on_meta(2)["D"]) == 2998 * 513


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("w_hpf", [0, 1])
def test_outputs_have_the_documented_shapes_at_every_size(size, w_hpf):
    nets = build_on_meta(3, image_size=size, w_hpf=w_hpf)
    G, F, E, D = (nets[letter] for letter in "GFED")
    with torch.device("meta"):
        x, y = torch.empty(2, 3, size, size), torch.zeros(2, dtype=torch.int64)
        masks = torch.empty(2, 2, 64, 64) if w_hpf else None
        s = E(x, y)
        assert s.shape == F(torch.empty(2, 16), y).shape == (2, 64)
        assert G(x, s, masks).shape == x.shape
        assert G.encode(x, masks).bottleneck.shape[2] == (8 if w_hpf else 16)
        assert D(x, y).src.shape == (2,)


def test_widths_double_up_to_the_maximum():
    G = build_on_meta(2, image_size=256)["G"]
    widths = [block.conv2.out_channels for block in G.encoder]
    assert G.from_rgb.out_channels == 64
    assert widths == [128, 256, 512, 512, 512, 512]


@pytest.mark.parametrize("form", MAPPING_FORMS)
def test_every_form_of_the_mapping_network_depends_on_latent_and_domain(form):
    torch.manual_seed(0)
    F = MappingNetwork(3, latent_dim=4, style_dim=5, hidden_dim=16, form=form)
    z = torch.randn(2, 4)
    a, b = F(z, torch.tensor([0, 0])), F(z, torch.tensor([1, 1]))
    assert a.shape == (2, 5)
    assert not torch.allclose(a, b)
    assert not torch.allclose(a[0], a[1])


def test_mapping_forms_have_the_layers_of_the_papers():
    branches = MappingNetwork(2, form="branches")
    heads = MappingNetwork(2, form="heads")
    assert (len(branches.shared), len(branches.branches)) == (4, 4)
    assert (len(heads.shared), len(heads.branches)) == (6, 1)
    assert heads.branches[0].weight.shape == (2, 64, 512)


def test_each_mask_of_the_high_pass_option_changes_the_output():
    torch.manual_seed(0)
    G = Generator(64, style_dim=8, base_width=4, max_width=8, w_hpf=1)
    x, s = torch.randn(2, 3, 64, 64), torch.randn(2, 8)
    off, on = torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16)
    neither, first, second = (
        G(x, s, torch.cat(masks, 1)) for masks in ((off, off), (on, off), (off, on))
    )
    assert not torch.allclose(neither, first)
    assert not torch.allclose(neither, second)
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match="masks belong to the high-pass option"):
        G(x, s)


def test_repeated_encoding_equals_encoding_of_repeated_images():
    torch.manual_seed(0)
    G = Generator(32, style_dim=8, base_width=4, max_width=8).double()
    x, s = torch.randn(2, 3, 32, 32).double(), torch.randn(6, 8).double()
    expected = G(x.repeat_interleave(3, 0), s)
    torch.testing.assert_close(G.decode(G.encode(x).repeat_interleave(3), s), expected)
