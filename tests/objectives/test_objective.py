"""Our iteration against the plainly written one, in float64."""

import copy
from dataclasses import replace

import pytest
import torch

from baselines.iteration import literal_iteration
from baselines.networks import make_plain
from stargan_dist.config import Config, LossConfig, ModelConfig
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import domain_labels
from stargan_dist.objectives import recipes
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipes import LATENT, REFERENCE
from stargan_dist.training.train_state import build_optimizers

WEIGHTS = LossConfig(reg=1.0, sty=0.7, cyc=1.3, ds=2.0, ds_iter=5)
# The paper's rates. Biases ahead of an instance norm have no true gradient, only rounding noise.
# Adam divides it by eps = 1e-8, and L2 feeds it back with the factor 1 - lr · decay / eps: 0 at
# the paper's lr and decay of 1e-4, but -9 at lr 1e-3, where the noise of these biases (which no
# output depends on) would grow tenfold a step.
OPTIM = recipes.ADAM_V2
ITERATIONS = 4


class Undistributed:
    """The verb of an engine, in one process."""

    def __init__(self, objective, networks, optimizers):
        self.loss_modules, self.networks, self.optimizers = (
            objective.loss_modules,
            networks,
            optimizers,
        )

    keeps_graphs = True

    def update(self, module, calls, trains):
        rows = []
        for call in calls:
            loss, terms = self.loss_modules[module](*call)
            (loss / len(calls)).backward()
            rows.append(terms)
        for name in trains:
            self.optimizers[name].step()
        self.loss_modules[module].zero_grad(set_to_none=True)
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}, {}


def make_networks(**kwargs):
    torch.manual_seed(0)
    sizes = {
        "image_size": 32,
        "base_width": 4,
        "max_width": 8,
        "style_dim": 6,
        "latent_dim": 5,
        "mapping_dim": 7,
    }
    labels = domain_labels(["a", "b", "c"])
    nets = recipes.TABLE["f"].build_networks(labels, ModelConfig(**sizes, **kwargs))
    for net in nets.values():
        net.double()
    return nets


def make_batch(seed, size=4):
    g = torch.Generator().manual_seed(seed)

    def images():
        return torch.rand(size, 3, 32, 32, generator=g, dtype=torch.float64) * 2 - 1

    y, y_trg = torch.randint(3, (2, size), generator=g)
    z, z2 = torch.randn(2, size, 5, generator=g, dtype=torch.float64)
    x, x_ref, x_ref2 = images(), images(), images()
    mix = torch.rand(size, generator=g, dtype=torch.float64)
    return Batch(x, y, x_ref, x_ref2, y_trg, z, z2, mix)


def objective_of(nets, weights=None, recipe="f"):
    """The objective of a row for the networks of StarGAN v2."""
    row = recipes.resolve(Config(recipe=recipe, loss=weights or LossConfig())).recipe
    return Objective(row, nets, domain_labels(["a", "b", "c"]))


def differences(ours, literal):
    return max(
        (a - b).abs().max().item()
        for net, other in zip(ours.values(), literal.values(), strict=True)
        for a, b in zip(net.parameters(), other.parameters(), strict=True)
    )


def train_both(ours, **kwargs):
    """Train two copies side by side; returns the largest differences of terms and parameters."""
    literal = make_plain(copy.deepcopy(ours))
    objective = objective_of(ours, WEIGHTS)
    engine = Undistributed(objective, ours, build_optimizers(ours, OPTIM))
    optimizers = build_optimizers(literal, OPTIM)
    terms_apart = 0.0
    for step in range(ITERATIONS):
        batch = make_batch(step)
        terms = objective.iterate(engine, [batch], step)
        lambda_ds = WEIGHTS.ds * (1 - step / WEIGHTS.ds_iter)
        expected = literal_iteration(literal, optimizers, batch, WEIGHTS, lambda_ds)
        assert terms.keys() == expected.keys()
        apart = max(abs(terms[name] - expected[name]).item() for name in terms)
        terms_apart = max(terms_apart, apart)
    return terms_apart, differences(ours, literal)


@pytest.mark.parametrize("mapping", ["branches", "heads", "conditional"])
def test_ours_equals_the_literal_iteration(mapping):
    nets = make_networks(mapping=mapping)
    begin = copy.deepcopy(nets)
    terms_apart, parameters_apart = train_both(nets)
    assert terms_apart <= 1e-9
    assert parameters_apart <= 1e-9
    assert all(differences({n: nets[n]}, {n: begin[n]}) > 1e-6 for n in nets)


def test_a_reference_step_that_moved_e_would_be_noticed(monkeypatch):
    wrong = REFERENCE._replace(trains=("G", "E"))
    row = replace(recipes.TABLE["f"], guides=(LATENT, wrong))
    monkeypatch.setitem(recipes.TABLE, "f", row)
    assert train_both(make_networks())[1] > 1e-6


def test_fakes_of_the_wrong_generator_would_be_noticed(monkeypatch):
    """Sharing across the step of G, which changes the encoder half, is not the algorithm."""
    original = Objective.iterate

    def stale(self, engine, batches, step):
        encoded = self.generator.G.encode(batches[0].x).detach()
        monkeypatch.setattr(self.generator.G, "encode", lambda x: encoded)
        return original(self, engine, batches, step)

    monkeypatch.setattr(Objective, "iterate", stale)
    assert train_both(make_networks())[1] > 1e-6


def test_a_copy_of_a_guide_is_that_guide():
    """DDP on GPUs takes tuples apart and builds them anew on their way to the forward."""
    nets = make_networks()
    side, batch = objective_of(nets, WEIGHTS).generator, make_batch(0)
    for guide in (LATENT, REFERENCE):
        copied = type(guide)(*guide)
        assert torch.equal(side.style(batch, copied), side.style(batch, guide))
    assert not torch.equal(side.style(batch, LATENT), side.style(batch, REFERENCE))


def test_the_reference_step_moves_g_alone():
    nets = make_networks()
    objective = objective_of(nets, WEIGHTS)
    loss, _ = objective.generator(make_batch(0), (REFERENCE,), nets["D"], 0)
    loss.backward()
    with_gradient = {
        name for name, net in nets.items() for p in net.parameters() if p.grad is not None
    }
    assert with_gradient == {"G"}
    assert all(p.requires_grad for net in nets.values() for p in net.parameters())


def test_an_iteration_draws_nothing_from_the_global_random_state():
    """So there is no random state to save: what is drawn is a function of (seed, slot)."""
    nets = make_networks()
    objective = objective_of(nets, WEIGHTS)
    engine = Undistributed(objective, nets, build_optimizers(nets, OPTIM))
    batch, before = make_batch(0), torch.get_rng_state()
    objective.iterate(engine, [batch], 0)
    assert torch.equal(before, torch.get_rng_state())
