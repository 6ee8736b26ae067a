"""What a training says of a CPU that is slow in the precision it was asked for."""

import pytest
import torch

from stargan_dist.nets.precision import POLICIES
from stargan_dist.training import environment

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["bfloat16", "bfloat16_most"])
def test_a_precision_that_is_slower_than_that_of_the_weights_is_told(monkeypatch, name):
    monkeypatch.setattr(environment, "times_slower", lambda dtype, other: 3.64)
    line = environment.warn_of_slow_precision(POLICIES[name], CPU)
    assert line and "3.6 times as long in bfloat16 as in float32" in line
    assert "--precision float32" in line


def test_a_faster_precision_is_not_told(monkeypatch):
    monkeypatch.setattr(environment, "times_slower", lambda dtype, other: 0.8)
    assert environment.warn_of_slow_precision(POLICIES["bfloat16"], CPU) is None


@pytest.mark.parametrize(
    ("name", "device"),
    [("float32", CPU), ("float64", CPU), ("bfloat16", torch.device("cuda"))],
)
def test_nothing_is_measured_without_a_lower_precision_or_a_cpu(monkeypatch, name, device):
    monkeypatch.setattr(environment, "times_slower", pytest.fail)
    assert environment.warn_of_slow_precision(POLICIES[name], device) is None


def test_measuring_leaves_the_random_state_of_the_training():
    before = torch.get_rng_state()
    assert environment.times_slower(torch.bfloat16, torch.float32) > 0
    assert torch.equal(torch.get_rng_state(), before)
