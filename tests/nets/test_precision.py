"""Every part of a network computes in the dtype of the policy and returns that of its input."""

import typing

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stargan_dist.config import Config, ModelConfig
from stargan_dist.data.labels import domain_labels
from stargan_dist.nets.precision import POLICIES, Policy, set_precision
from stargan_dist.objectives import recipes

# Policies that compute parts of the networks in a lower precision than that of the weights.
LOW = [name for name, policy in POLICIES.items() if policy != Policy(policy.weights)]
Y = torch.tensor([0, 2])


class ProductDtypes(TorchDispatchMode):
    """Record the dtypes of all convolutions and matrix products."""

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


def record_dtypes(function, *args, **kwargs):
    """Call a function. Returns its result and the dtypes that it computed in."""
    with ProductDtypes() as dtypes:
        return function(*args, **kwargs), dtypes


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("w_hpf", [0, 1])
def test_both_halves_of_the_generator_compute_in_the_dtype_of_the_policy(name, w_hpf):
    policy = POLICIES[name]
    nets, x = make_networks(name, w_hpf=w_hpf), make_images().to(policy.weights)
    G, s = nets["G"].to(policy.weights), torch.randn(2, 6, dtype=policy.weights)
    masks = torch.ones(2, 2, 8, 8, dtype=policy.weights) if w_hpf else None
    encoded, encoder_dtypes = record_dtypes(G.encode, x, masks)
    image, decoder_dtypes = record_dtypes(G.decode, encoded, s)
    assert encoder_dtypes.convolutions == {policy.G or policy.weights}
    # The layers that produce the image compute in the dtype of their weights.
    assert decoder_dtypes.convolutions == {policy.G or policy.weights, policy.weights}
    skip_dtypes = [features.dtype for features in encoded.outlines.values()]
    assert {image.dtype, encoded.bottleneck.dtype, *skip_dtypes} == {policy.weights}
    assert len(skip_dtypes) == w_hpf


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("letter", ["E", "D"])
def test_trunks_compute_in_the_dtype_of_the_policy_and_heads_in_that_of_the_weights(name, letter):
    policy, nets = POLICIES[name], make_networks(name)
    net, x = nets[letter].to(policy.weights), make_images().to(policy.weights)
    out, dtypes = record_dtypes(net, x, Y)
    out = out.src if letter == "D" else out
    assert dtypes.convolutions == {getattr(policy, letter) or policy.weights}
    assert dtypes.linear == {out.dtype} == {policy.weights}


@pytest.mark.parametrize("name", LOW)
def test_double_backward_passes_of_the_discriminator_are_those_of_float32(name):
    expected, x = make_networks("float32")["D"](make_images(), Y).src, make_images()
    D = make_networks(name)["D"]
    out, dtypes = record_dtypes(D, x, Y, double_backward=True)
    assert dtypes.convolutions == {torch.float32}
    assert torch.equal(out.src, expected)
    assert torch.equal(D(x, Y).src, expected) == (POLICIES[name].D is None)


def test_the_mapping_network_is_the_same_under_every_policy():
    z = torch.randn(2, 5)
    for name in LOW:
        low, float32 = make_networks(name)["F"], make_networks("float32")["F"]
        assert torch.equal(low(z, Y), float32(z, Y))


@pytest.mark.parametrize("name", LOW)
def test_float32_results_are_bit_equal_again_after_a_low_policy(name):
    """A policy changes attributes of the networks alone, and no global state of torch."""
    nets, x, s = make_networks("float32"), make_images(), torch.randn(2, 6)
    expected = nets["G"](x, s), nets["E"](x, Y), nets["D"](x, Y).src
    set_precision(nets, POLICIES[name])
    low = nets["G"](x, s), nets["E"](x, Y), nets["D"](x, Y).src
    set_precision(nets, POLICIES["float32"])
    again = nets["G"](x, s), nets["E"](x, Y), nets["D"](x, Y).src
    lowered = (getattr(POLICIES[name], letter) is not None for letter in "GED")
    for before, during, after, is_lowered in zip(expected, low, again, lowered, strict=True):
        assert torch.equal(before, after)
        assert torch.equal(before, during) != is_lowered
        torch.testing.assert_close(before, during, rtol=0.1, atol=0.1)


def test_the_configuration_offers_every_policy():
    choices = typing.get_type_hints(Config)["precision"]
    assert set(typing.get_args(choices)) == POLICIES.keys()
