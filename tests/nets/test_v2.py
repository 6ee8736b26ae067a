import pytest
import torch

from stargan_dist.nets.v2 import MAPPING_FORMS, Generator, MappingNetwork, build_networks


def count(module):
    return sum(p.numel() for p in module.parameters())


def build_on_meta(*args, **kwargs):
    with torch.device("meta"):
        return build_networks(*args, **kwargs)


def test_parameter_counts_are_the_published_ones():
    counts = [count(net) for net in build_on_meta(2, 256, w_hpf=1)]
    assert counts == [43_467_395, 2_438_272, 20_916_928, 20_852_290]


def test_a_further_domain_costs_its_heads_alone():
    two, three = build_on_meta(2), build_on_meta(3)
    more = [count(b) - count(a) for a, b in zip(two, three, strict=True)]
    assert more == [0, 820_800, 32_832, 513]


def test_thousands_of_domains():
    nets = build_on_meta(3000, mapping="conditional")
    assert count(nets.F) < 2e6
    assert count(nets.D) - count(build_on_meta(2).D) == 2998 * 513


@pytest.mark.parametrize("size", [32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("w_hpf", [0, 1])
def test_shapes_at_every_size(size, w_hpf):
    with torch.device("meta"):
        nets = build_networks(3, size, w_hpf=w_hpf)
        x, y = torch.empty(2, 3, size, size), torch.zeros(2, dtype=torch.int64)
        masks = (torch.empty(2, 1, 64, 64), torch.empty(2, 1, 64, 64)) if w_hpf else None
        s = nets.E(x, y)
        assert s.shape == nets.F(torch.empty(2, 16), y).shape == (2, 64)
        assert nets.G(x, s, masks).shape == x.shape
        assert nets.G.encode(x).bottleneck.shape[2] == (8 if w_hpf else 16)
        assert nets.D(x, y).shape == (2,)


def test_widths_double_up_to_the_cap():
    nets = build_on_meta(2, 256)
    outs = [block.conv2.out_channels for block in nets.G.encoder]
    assert nets.G.from_rgb.out_channels == 64
    assert outs == [128, 256, 512, 512, 512, 512]


@pytest.mark.parametrize("form", MAPPING_FORMS)
def test_every_form_of_the_mapping_depends_on_latent_and_domain(form):
    torch.manual_seed(0)
    F = MappingNetwork(3, latent_dim=4, style_dim=5, hidden_dim=16, form=form)
    z = torch.randn(2, 4)
    zero, one = torch.tensor([0, 0]), torch.tensor([1, 1])
    a, b = F(z, zero), F(z, one)
    assert a.shape == (2, 5)
    assert not torch.allclose(a, b)
    assert not torch.allclose(a[0], a[1])


def test_mapping_forms_have_the_layers_of_the_papers():
    branches = MappingNetwork(2, form="branches")
    heads = MappingNetwork(2, form="heads")
    assert (len(branches.shared), len(branches.branches)) == (4, 4)
    assert (len(heads.shared), len(heads.branches)) == (6, 1)
    assert heads.branches[0].weight.shape == (2, 64, 512)


def test_masks_bring_back_the_outlines_of_the_source():
    torch.manual_seed(0)
    G = Generator(64, style_dim=8, base_width=4, max_width=8, w_hpf=1)
    x, s = torch.randn(2, 3, 64, 64), torch.randn(2, 8)
    nothing, all_of_it = torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16)
    none = G(x, s, (nothing, nothing))
    at_32, above = G(x, s, (all_of_it, nothing)), G(x, s, (nothing, all_of_it))
    assert not torch.allclose(none, at_32)
    assert not torch.allclose(none, above)
    assert not torch.allclose(at_32, above)
    with pytest.raises(ValueError, match="masks belong to the high-pass option"):
        G(x, s)


def test_repeated_encoding_equals_encoding_of_repeated_images():
    torch.manual_seed(0)
    G = Generator(32, style_dim=8, base_width=4, max_width=8).double()
    x, s = torch.randn(2, 3, 32, 32).double(), torch.randn(6, 8).double()
    whole = G(x.repeat_interleave(3, 0), s)
    torch.testing.assert_close(G.decode(G.encode(x).repeat_interleave(3), s), whole)
