from contextlib import nullcontext

import pytest
import torch

from stargan_dist import config as configs
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.engines import make_engine
from stargan_dist.engines.base import LossScale
from stargan_dist.objectives.recipes import LATENT, resolve
from stargan_dist.training.nonfinite import NonFiniteGuard
from stargan_dist.training.train_state import TrainState
from tests.helpers.iterations import iterate

SMALL = ["--model.image_size", "32", "--model.base_width", "4", "--model.max_width", "8"]


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()


def make(world, device, *options):
    """A training and its engine, and a batch on the device."""
    config = configs.parse(["--run", "r", "--data.shards", "s", *SMALL, *options])
    training = TrainState(resolve(config), domain_labels(["a", "b"]), torch.device(device))
    images = torch.randint(256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    labels, latents = torch.randint(2, (2, 4)), torch.randn(2, 4, 16)
    batch = Batch(images[0], labels[0], images[1], images[2], labels[1], *latents, torch.rand(4))
    engine = make_engine(config, training.parts, world)
    return training, engine, batch.to(torch.device(device), training.dtype)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_iteration_never_reads_from_the_device(world, monkeypatch, precision):
    """On the meta device every read (`.item()`, a comparison, a copy to the host) raises."""
    monkeypatch.setattr(World, "device", torch.device("meta"))
    for module in ("v2", "precision"):  # autocast is unknown there
        monkeypatch.setattr(f"stargan_dist.nets.{module}.autocast_to", lambda *_: nullcontext())
    training, engine, batch = make(world, "meta", "--precision", precision)
    for optimizer in training.optimizers.values():
        optimizer.defaults["fused"] = True  # as on a GPU: it looks at the flag itself, there
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    terms = iterate(training, engine, [batch], step=0)
    with pytest.raises((RuntimeError, NotImplementedError)):
        world.all_reduce_mean(
            terms
        )  # this is one place that reads; the next is the guard, an iteration late
    guard = NonFiniteGuard(training.config, world, list, engine.loss_scales)
    with pytest.raises((RuntimeError, NotImplementedError)):
        guard.watch(1, terms)


def weights(training):
    return {
        f"{letter}.{name}": value.clone()
        for letter, network in training.networks.items()
        for name, value in network.state_dict().items()
    }


def test_a_network_whose_gradient_is_not_finite_stays_as_it_was(world):
    training, engine, batch = make(world, "cpu")
    before = weights(training)
    bad = batch._replace(x=batch.x.index_fill(0, torch.tensor(2), float("inf")))
    terms = training.objective.iterate(engine, [bad], step=0)
    flags = {name: value.item() for name, value in terms.items() if "finite_" in name}
    assert set(flags.values()) == {0.0}
    after = weights(training)
    assert all(torch.equal(before[name], after[name]) for name in before)
    terms = training.objective.iterate(engine, [batch], step=1)
    assert all(value == 1 for name, value in terms.items() if "finite_" in name)
    moved = {name[0] for name, value in weights(training).items() if (value != before[name]).any()}
    assert moved == set("GFED")


def test_clipping_bounds_the_step_of_each_network(world):
    """With plain SGD the step of a network is its clipped gradient."""
    bounds = {"G": 0.01, "F": 0.02, "E": 0.03, "D": 0.04}
    options = [word for n, b in bounds.items() for word in (f"--optim.clip.{n}", str(b))]
    training, engine, batch = make(world, "cpu", "--precision", "float64", *options)
    for name, network in training.networks.items():
        training.optimizers[name] = torch.optim.SGD(network.parameters(), lr=1.0)
    before = weights(training)
    D = training.networks["D"]
    terms = engine.update("G", [(batch, (LATENT,), D, 0)], LATENT.trains)[1]
    terms |= engine.update("D", [(batch, batch.x_ref)], ("D",))[1]
    after = weights(training)
    for letter, bound in bounds.items():
        assert terms[f"grad_norm_{letter}"] > bound
        moved = sum(((after[n] - before[n]) ** 2).sum() for n in before if n[0] == letter)
        assert moved.sqrt().item() == pytest.approx(bound, rel=1e-4)


def test_restored_moments_lie_in_memory_as_their_weights(world):
    """The kernel of a GPU refuses others, where channels are innermost."""
    channels_last = ("--engine.channels_last", "on")
    training, engine, batch = make(world, "cpu", *channels_last)
    training.objective.iterate(engine, [batch], step=0)
    saved = training.snapshot(engine, keep=True)
    other, other_engine, _ = make(world, "cpu", *channels_last)
    other.restore_optimizers(other_engine, saved)
    weight = other.networks["G"].encoder[0].conv1.weight
    assert not weight.is_contiguous()
    moment = other.optimizers["G"].state[weight]["exp_avg"]
    assert moment.stride() == weight.stride()
    original = training.optimizers["G"].state[training.networks["G"].encoder[0].conv1.weight]
    assert torch.equal(moment, original["exp_avg"])


def test_float16_scales_the_loss_and_not_the_step(world):
    """The gradient that is clipped and stepped is the unscaled one, R1's included."""
    gradients = {}
    for precision in ("float32", "float16"):
        torch.manual_seed(0)
        _, engine, batch = make(world, "cpu", "--precision", precision)
        gradients[precision] = engine.update("D", [(batch, batch.x_ref)], ("D",))[1]["grad_norm_D"]
    assert gradients["float16"] == pytest.approx(gradients["float32"].item(), rel=2e-2)


def test_the_loss_scale_falls_where_gradients_overflow_and_grows_again(monkeypatch):
    monkeypatch.setattr(LossScale, "PATIENCE", 3)
    scale, begin = LossScale(torch.device("cpu")), 2.0**16
    seen = []
    for finite in (True, False, True, True, True, True):
        scale.update(torch.tensor(finite))
        seen.append(scale.value.item() / begin)
    assert seen == [1, 0.5, 0.5, 0.5, 1, 1]
    other = LossScale(torch.device("cpu"))
    other.load(scale.state())
    assert other.state() == scale.state() == [begin, 1]


def test_an_overflow_is_skipped_and_lowers_the_scale(world):
    training, engine, batch = make(world, "cpu", "--precision", "float16")
    engine.loss_scales["G"].value.fill_(2.0**120)
    before = weights(training)
    terms = training.objective.iterate(engine, [batch], step=0)
    assert [terms[f"G/latent/finite_{name}"].item() for name in "GFE"] == [0, 0, 0]
    assert engine.loss_scales["G"].value < 2.0**120
    assert engine.loss_scales["D"].value == 2.0**16
    after = weights(training)
    assert {name[0] for name in before if not torch.equal(before[name], after[name])} == {"D"}
