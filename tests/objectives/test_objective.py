"""The iteration of StarGAN v2 against a literal implementation, in float64."""

import copy
from dataclasses import replace

import pytest
import torch

from baselines.iteration import literal_iteration
from baselines.networks import make_plain
from stargan_dist.config import Config, LossConfig, ModelConfig
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import domain_labels
from stargan_dist.nets.masks import no_masks
from stargan_dist.objectives import recipes
from stargan_dist.objectives.loss_modules import GeneratorLoss
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.terms import LATENT, REFERENCE
from stargan_dist.training.train_state import build_optimizers
from tests.helpers.models import tiny_landmarks

WEIGHTS = LossConfig(reg=1.0, sty=0.7, cyc=1.3, ds=2.0, ds_iter=5)
# The paper's rates. Biases before an instance norm affect no output. Their gradient is rounding
# noise, which Adam divides by eps = 1e-8. The L2 penalty multiplies such a bias by
# 1 - lr · decay / eps in each step: by 0 at the paper's lr and decay of 1e-4, but by -9 at lr 1e-3,
# where the noise would grow about tenfold per step.
OPTIM = recipes.ADAM_V2
ITERATIONS = 4


class SingleProcessEngine:
    """A plain `Updater`: no wrappers, no clipping, no loss scale."""

    keeps_graphs = True

    def __init__(self, objective, optimizers):
        self.loss_modules, self.optimizers = objective.loss_modules, optimizers

    def update(self, module, calls, trains):
        terms_of_calls = []
        for call in calls:
            loss, terms = self.loss_modules[module](*call)
            (loss / len(calls)).backward()
            terms_of_calls.append(terms)
        for letter in trains:
            self.optimizers[letter].step()
        self.loss_modules[module].zero_grad(set_to_none=True)
        means = {n: sum(terms[n] for terms in terms_of_calls) / len(calls) for n in terms}
        return means, {}


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
    """Return a random batch of 3 domains at 32 px, with latents of length 5, in float64."""
    rng = torch.Generator().manual_seed(seed)

    def images():
        return torch.rand(size, 3, 32, 32, generator=rng, dtype=torch.float64) * 2 - 1

    y, y_trg = torch.randint(3, (2, size), generator=rng)
    z, z2 = torch.randn(2, size, 5, generator=rng, dtype=torch.float64)
    x, x_ref, x_ref2 = images(), images(), images()
    mix = torch.rand(size, generator=rng, dtype=torch.float64)
    return Batch(x, y, x_ref, x_ref2, y_trg, z, z2, mix)


def make_pairs(seed, size=4):
    """Return a random batch of pairs of 2 domains, each in a random order. See `make_batch`."""
    rng = torch.Generator().manual_seed(seed + 1000)
    y = torch.cat([torch.randperm(2, generator=rng) for _ in range(size // 2)])
    return make_batch(seed, size)._replace(y=y, y_trg=1 - y)


def make_objective(nets, weights=None, masks=no_masks):
    """Return the objective of StarGAN v2 for its networks. weights: a LossConfig."""
    recipe = recipes.resolve(Config(recipe="f", loss=weights or LossConfig())).recipe
    return Objective(recipe, nets, domain_labels(["a", "b", "c"]), masks=masks)


def max_parameter_difference(nets, other_nets):
    return max(
        (a - b).abs().max().item()
        for net, other in zip(nets.values(), other_nets.values(), strict=True)
        for a, b in zip(net.parameters(), other.parameters(), strict=True)
    )


def train_both(nets, masks=no_masks):
    """Train networks with the objective, and a copy of them with the literal iteration.

    Returns:
        The largest differences of loss terms and of parameters.
    """
    literal = make_plain(copy.deepcopy(nets))
    objective = make_objective(nets, WEIGHTS, masks)
    engine = SingleProcessEngine(objective, build_optimizers(nets, OPTIM))
    optimizers = build_optimizers(literal, OPTIM)
    max_term_difference = 0.0
    for step in range(ITERATIONS):
        batch = make_batch(step)
        terms = objective.iterate(engine, [batch], step)
        lambda_ds = WEIGHTS.ds * (1 - step / WEIGHTS.ds_iter)
        expected = literal_iteration(literal, optimizers, batch, WEIGHTS, lambda_ds, masks)
        assert terms.keys() == expected.keys()
        difference = max(abs(terms[name] - expected[name]).item() for name in terms)
        max_term_difference = max(max_term_difference, difference)
    return max_term_difference, max_parameter_difference(nets, literal)


@pytest.mark.parametrize("mapping", ["branches", "heads", "conditional"])
def test_the_iteration_equals_the_literal_one(mapping):
    nets = make_networks(mapping=mapping)
    initial = copy.deepcopy(nets)
    term_difference, parameter_difference = train_both(nets)
    assert term_difference <= 1e-9
    assert parameter_difference <= 1e-9
    assert all(max_parameter_difference({n: nets[n]}, {n: initial[n]}) > 1e-6 for n in nets)


def test_the_iteration_with_masks_equals_the_literal_one():
    nets, calls = make_networks(w_hpf=1.0), []
    masks = tiny_landmarks().masks(dtype=torch.float64)

    def counted(x):
        calls.append(x)
        return masks(x)

    term_difference, parameter_difference = train_both(nets, counted)
    assert term_difference <= 1e-9
    assert parameter_difference <= 1e-9
    # Of the sources once, and of the fake of each guide; the literal iteration makes 8.
    assert len(calls) == ITERATIONS * (3 + 8)


def test_the_comparison_detects_masks_of_the_wrong_image(monkeypatch):
    """The way back has the masks of the fake, not those of the source."""
    masks = tiny_landmarks().masks(dtype=torch.float64)
    original = GeneratorLoss.forward

    def forward_with_masks_of_sources(self, batch, *args):
        monkeypatch.setattr(self, "masks", lambda _: batch.masks)
        return original(self, batch, *args)

    monkeypatch.setattr(GeneratorLoss, "forward", forward_with_masks_of_sources)
    assert train_both(make_networks(w_hpf=1.0), masks)[1] > 1e-6


def test_the_comparison_detects_a_reference_step_that_trains_e(monkeypatch):
    wrong_guide = REFERENCE._replace(trains=("G", "E"))
    recipe = replace(recipes.TABLE["f"], guides=(LATENT, wrong_guide))
    monkeypatch.setitem(recipes.TABLE, "f", recipe)
    assert train_both(make_networks())[1] > 1e-6


def test_the_comparison_detects_encodings_shared_across_a_step_of_g(monkeypatch):
    """A step of G changes its encoder half, so encodings from before it are stale."""
    original = Objective.iterate

    def iterate_with_stale_encodings(self, engine, batches, step):
        encoded = self.generator.G.encode(batches[0].x).detach()
        monkeypatch.setattr(self.generator.G, "encode", lambda x, masks=None, y=None: encoded)
        return original(self, engine, batches, step)

    monkeypatch.setattr(Objective, "iterate", iterate_with_stale_encodings)
    assert train_both(make_networks())[1] > 1e-6


def test_a_copy_of_a_guide_is_equivalent_to_it():
    """On GPUs, DDP takes tuples apart and rebuilds them before it calls the forward."""
    nets = make_networks()
    generator_loss, batch = make_objective(nets, WEIGHTS).generator, make_batch(0)
    for guide in (LATENT, REFERENCE):
        copied = type(guide)(*guide)
        style = generator_loss.style(batch, guide)
        assert torch.equal(generator_loss.style(batch, copied), style)
    by_latent = generator_loss.style(batch, LATENT)
    assert not torch.equal(by_latent, generator_loss.style(batch, REFERENCE))


def test_the_reference_step_trains_g_alone():
    nets = make_networks()
    objective = make_objective(nets, WEIGHTS)
    loss, _ = objective.generator(make_batch(0), (REFERENCE,), nets["D"], 0)
    loss.backward()
    with_gradient = {
        name for name, net in nets.items() for p in net.parameters() if p.grad is not None
    }
    assert with_gradient == {"G"}
    assert all(p.requires_grad for net in nets.values() for p in net.parameters())


def test_an_iteration_draws_nothing_from_the_global_random_state():
    """All random draws are functions of (seed, slot), so checkpoints hold no random state."""
    nets = make_networks()
    objective = make_objective(nets, WEIGHTS)
    engine = SingleProcessEngine(objective, build_optimizers(nets, OPTIM))
    batch, before = make_batch(0), torch.get_rng_state()
    objective.iterate(engine, [batch], 0)
    assert torch.equal(before, torch.get_rng_state())
