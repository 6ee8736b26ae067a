"""The DDP engine in one process: non-finite gradients, clipping, optimizer states, loss scales."""

from contextlib import nullcontext

import pytest
import torch

from stargan_dist import config as configs
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.engines import make_engine
from stargan_dist.engines.base import LossScale
from stargan_dist.objectives.recipes import resolve
from stargan_dist.objectives.terms import LATENT
from stargan_dist.training.nonfinite import NonFiniteGuard
from stargan_dist.training.train_state import TrainState
from tests.helpers.iterations import iterate
from tests.helpers.models import tiny_landmarks

SMALL = ["--model.image_size", "32", "--model.base_width", "4", "--model.max_width", "8"]


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()


def make_state_engine_batch(world, device, *options):
    """Return a train state, its engine, and a batch on the device."""
    config = configs.parse(["--run", "r", "--data.shards", "s", *SMALL, *options])
    landmarks = tiny_landmarks() if config.model.w_hpf else None
    labels = domain_labels(["a", "b"])
    spec = resolve(config)
    state = TrainState(spec, labels, torch.device(device), landmarks)
    images = torch.randint(256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    labels, latents = torch.randint(2, (2, 4)), torch.randn(2, 4, spec.config.model.latent_dim)
    batch = Batch(images[0], labels[0], images[1], images[2], labels[1], *latents, torch.rand(4))
    engine = make_engine(config, state.parts, world)
    return state, engine, batch.to(torch.device(device), state.dtype)


@pytest.mark.parametrize(
    "options",
    [
        ("--precision", "float32"), ("--precision", "float16"), ("--model.w_hpf", "1"),
        ("--recipe", "cyclegan"), ("--recipe", "munit"),
        ("--recipe", "drit", "--optim.clip.C", "0.1"),
    ],
)  # fmt: skip
def test_an_iteration_never_reads_from_the_device(world, monkeypatch, options):
    """On the meta device every read (`.item()`, a comparison, a copy to the host) raises.

    Two places do read: the mean over the ranks of a step that is logged, and the guard, one
    iteration later.
    """
    monkeypatch.setattr(World, "device", torch.device("meta"))
    for module in ("v2", "munit", "drit", "precision"):  # the meta device has no autocast
        monkeypatch.setattr(f"stargan_dist.nets.{module}.autocast_to", lambda *_: nullcontext())
    state, engine, batch = make_state_engine_batch(world, "meta", *options)
    for optimizer in state.optimizers.values():
        optimizer.defaults["fused"] = True  # as on a GPU, where Adam itself reads the flag
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure: None)
    steps = range(state.objective.recipe.discriminator_steps)  # the last one has all networks
    terms = {k: v for step in steps for k, v in iterate(state, engine, [batch], step).items()}
    assert {name[0] for name in terms} == {*state.objective.loss_modules}
    with pytest.raises((RuntimeError, NotImplementedError)):
        world.all_reduce_mean(terms)
    guard = NonFiniteGuard(state.config, world, list, engine.loss_scales)
    with pytest.raises((RuntimeError, NotImplementedError)):
        guard.watch(1, terms)


def copy_weights(state):
    return {
        f"{letter}.{name}": value.clone()
        for letter, network in state.networks.items()
        for name, value in network.state_dict().items()
    }


def test_a_network_whose_gradient_is_not_finite_stays_unchanged(world):
    state, engine, batch = make_state_engine_batch(world, "cpu")
    before = copy_weights(state)
    infinite_batch = batch._replace(x=batch.x.index_fill(0, torch.tensor(2), float("inf")))
    terms = state.objective.iterate(engine, [infinite_batch], step=0)
    flags = {name: value.item() for name, value in terms.items() if "finite_" in name}
    assert set(flags.values()) == {0.0}
    after = copy_weights(state)
    assert all(torch.equal(before[name], after[name]) for name in before)
    terms = state.objective.iterate(engine, [batch], step=1)
    assert all(value == 1 for name, value in terms.items() if "finite_" in name)
    after = copy_weights(state)
    assert {name[0] for name in before if (after[name] != before[name]).any()} == set("GFED")


def test_clipping_bounds_the_step_of_each_network(world):
    """The step of plain SGD with rate 1 is the clipped gradient."""
    bounds = {"G": 0.01, "F": 0.02, "E": 0.03, "D": 0.04}
    options = [word for n, b in bounds.items() for word in (f"--optim.clip.{n}", str(b))]
    state, _, batch = make_state_engine_batch(world, "cpu", "--precision", "float64", *options)
    for letter, network in state.networks.items():
        state.optimizers[letter] = torch.optim.SGD(network.parameters(), lr=1.0)
    engine = make_engine(state.config, state.parts, world)
    before = copy_weights(state)
    D = state.networks["D"]
    statistics = engine.update("G", [(batch, (LATENT,), D, 0)], LATENT.trains)[1]
    statistics |= engine.update("D", [(batch, batch.x_ref)], ("D",))[1]
    after = copy_weights(state)
    for letter, bound in bounds.items():
        assert statistics[f"grad_norm_{letter}"] > bound
        squared_step = sum(((after[n] - before[n]) ** 2).sum() for n in before if n[0] == letter)
        assert squared_step.sqrt().item() == pytest.approx(bound, rel=1e-4)


def test_restored_moments_have_the_memory_layout_of_their_weights(world):
    """Fused Adam on a GPU rejects other layouts, such as contiguous moments of channels-last
    weights."""
    channels_last = ("--engine.channels_last", "on")
    state, engine, batch = make_state_engine_batch(world, "cpu", *channels_last)
    state.objective.iterate(engine, [batch], step=0)
    saved = state.snapshot(engine, keep=True)
    restored, restored_engine, _ = make_state_engine_batch(world, "cpu", *channels_last)
    restored.restore_shares(restored_engine, saved)
    weight = restored.networks["G"].encoder[0].conv1.weight
    assert not weight.is_contiguous()
    moment = restored.optimizers["G"].state[weight]["exp_avg"]
    assert moment.stride() == weight.stride()
    original = state.optimizers["G"].state[state.networks["G"].encoder[0].conv1.weight]
    assert torch.equal(moment, original["exp_avg"])


def test_float16_scales_the_loss_and_not_the_step(world):
    """Clipping and optimizer steps use the unscaled gradient, that of R1 included."""
    norms = {}
    for precision in ("float32", "float16"):
        torch.manual_seed(0)
        _, engine, batch = make_state_engine_batch(world, "cpu", "--precision", precision)
        norms[precision] = engine.update("D", [(batch, batch.x_ref)], ("D",))[1]["grad_norm_D"]
    assert norms["float16"] == pytest.approx(norms["float32"].item(), rel=2e-2)


def test_the_loss_scale_is_halved_after_an_overflow_and_doubled_after_patience(monkeypatch):
    monkeypatch.setattr(LossScale, "PATIENCE", 3)
    scale, initial = LossScale(torch.device("cpu")), 2.0**16
    factors = []
    for finite in (True, False, True, True, True, True):
        scale.update(torch.tensor(finite))
        factors.append(scale.value.item() / initial)
    assert factors == [1, 0.5, 0.5, 0.5, 1, 1]
    loaded = LossScale(torch.device("cpu"))
    loaded.load(scale.state())
    assert loaded.state() == scale.state() == [initial, 1]


def test_an_overflow_skips_the_step_and_lowers_the_loss_scale(world):
    state, engine, batch = make_state_engine_batch(world, "cpu", "--precision", "float16")
    engine.loss_scales["G"].value.fill_(2.0**120)
    before = copy_weights(state)
    terms = state.objective.iterate(engine, [batch], step=0)
    assert [terms[f"G/latent/finite_{letter}"].item() for letter in "GFE"] == [0, 0, 0]
    assert engine.loss_scales["G"].value < 2.0**120
    assert engine.loss_scales["D"].value == 2.0**16
    after = copy_weights(state)
    assert {name[0] for name in before if not torch.equal(before[name], after[name])} == {"D"}
