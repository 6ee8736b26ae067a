"""Each part computes in the dtype of its policy, and gives back float32."""

import typing

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stargan_dist.config import Config, ModelConfig
from stargan_dist.data.labels import domain_labels
from stargan_dist.nets.precision import POLICIES, Policy, set_precision
from stargan_dist.objectives import recipes

LOW = [name for name, policy in POLICIES.items() if policy != Policy(policy.weights)]
Y = torch.tensor([0, 2])


class Products(TorchDispatchMode):
    """Notes the dtype of every convolution and every product of matrices."""

    def __init__(self):
        super().__init__()
        self.convolutions, self.linear = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if "convolution" in name:
            self.convolutions.add(out.dtype)
        elif name in ("addmm", "baddbmm"):
            self.linear.add(out.dtype)
        return out


def make_networks(policy, **kwargs):
    torch.manual_seed(0)
    sizes = {"image_size": 32, "base_width": 4, "max_width": 8, "style_dim": 6, "latent_dim": 5}
    model, labels = ModelConfig(mapping_dim=7, **sizes, **kwargs), domain_labels(["a", "b", "c"])
    nets = recipes.TABLE["f"].build_networks(labels, model)
    set_precision(nets, POLICIES[policy])
    return nets


def make_images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def noted(compute, *args, **kwargs):
    with Products() as products:
        return compute(*args, **kwargs), products


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("w_hpf", [0, 1])
def test_both_halves_of_the_generator(name, w_hpf):
    policy = POLICIES[name]
    nets, x = make_networks(name, w_hpf=w_hpf), make_images().to(policy.weights)
    G, s = nets["G"].to(policy.weights), torch.randn(2, 6, dtype=policy.weights)
    masks = (torch.ones(2, 1, 8, 8, dtype=policy.weights),) * 2 if w_hpf else None
    encoded, encoding = noted(G.encode, x)
    image, decoding = noted(G.decode, encoded, s, masks)
    assert encoding.convolutions == {policy.G or policy.weights}
    assert decoding.convolutions == {policy.G or policy.weights, policy.weights}  # the image
    kept = [features.dtype for features in encoded.skips.values()]
    assert {image.dtype, encoded.bottleneck.dtype, *kept} == {policy.weights}
    assert len(kept) == w_hpf


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("letter", ["E", "D"])
def test_trunks_and_their_heads(name, letter):
    policy, nets = POLICIES[name], make_networks(name)
    net, x = nets[letter].to(policy.weights), make_images().to(policy.weights)
    out, products = noted(net, x, Y)
    out = out.src if letter == "D" else out
    assert products.convolutions == {getattr(policy, letter) or policy.weights}
    assert products.linear == {out.dtype} == {policy.weights}


@pytest.mark.parametrize("name", LOW)
def test_exact_passes_of_the_discriminator_are_those_of_float32(name):
    exact, x = make_networks("float32")["D"](make_images(), Y).src, make_images()
    D = make_networks(name)["D"]
    out, products = noted(D, x, Y, double_backward=True)
    assert products.convolutions == {torch.float32}
    assert torch.equal(out.src, exact)
    assert torch.equal(D(x, Y).src, exact) == (POLICIES[name].D is None)


def test_the_mapping_is_the_same_in_every_policy():
    z = torch.randn(2, 5)
    for name in LOW:
        ours, float32 = make_networks(name)["F"], make_networks("float32")["F"]
        assert torch.equal(ours(z, Y), float32(z, Y))


@pytest.mark.parametrize("name", LOW)
def test_float32_is_exact_again_after_a_low_policy(name):
    """What a policy does is kept in the networks alone, and nothing of it in torch."""
    nets, x, s = make_networks("float32"), make_images(), torch.randn(2, 6)
    expected = nets["G"](x, s), nets["E"](x, Y), nets["D"](x, Y).src
    set_precision(nets, POLICIES[name])
    low = nets["G"](x, s), nets["E"](x, Y), nets["D"](x, Y).src
    set_precision(nets, POLICIES["float32"])
    again = nets["G"](x, s), nets["E"](x, Y), nets["D"](x, Y).src
    lowered = (getattr(POLICIES[name], letter) is not None for letter in "GED")
    for before, between, after, differs in zip(expected, low, again, lowered, strict=True):
        assert torch.equal(before, after)
        assert torch.equal(before, between) != differs
        torch.testing.assert_close(before, between, rtol=0.1, atol=0.1)


def test_the_configuration_offers_every_policy():
    offered = typing.get_type_hints(Config)["precision"]
    assert set(typing.get_args(offered)) == POLICIES.keys()
