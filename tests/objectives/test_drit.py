"""The iterations of DRIT and MSGAN against literal ones, in float64; the noise of their slots."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from baselines.drit import literal_iteration, literal_optimizers
from stargan_dist.config import ClipConfig, Config, LossConfig, OptimConfig
from stargan_dist.data.labels import domain_labels
from stargan_dist.objectives import recipes
from stargan_dist.objectives.loss_modules import of_partners
from stargan_dist.objectives.noise import (
    ATTRIBUTE,
    ATTRIBUTE_OF_FAKE,
    CONTENT,
    CONTENT_OF_FAKE,
    normal_noise,
)
from stargan_dist.objectives.objective import Objective
from stargan_dist.training.train_state import build_optimizers
from tests.objectives.test_objective import (
    SingleProcessEngine,
    make_pairs,
    max_parameter_difference,
)
from tests.objectives.test_recipes import MODEL

LABELS = domain_labels(["a", "b"])
PURPOSES = {
    "content": CONTENT,
    "content of fake": CONTENT_OF_FAKE,
    "attribute": ATTRIBUTE,
    "attribute of fake": ATTRIBUTE_OF_FAKE,
}


class ClippingEngine(SingleProcessEngine):
    """It clips the gradient of C."""

    def __init__(self, objective, optimizers):
        super().__init__(objective, optimizers)
        parameters, max_norm = [*objective.content.parameters()], objective.recipe.optim.clip.C
        optimizers["C"].register_step_pre_hook(
            lambda *_: (nn.utils.clip_grad_norm_(parameters, max_norm), None)[1]
        )


def resolved(name):
    return recipes.resolve(Config(recipe=name, model=MODEL)).recipe


def make_networks(recipe):
    """Return networks in float64, of which C has gradients above the largest norm."""
    torch.manual_seed(0)
    nets = recipe.build_networks(LABELS, MODEL)
    for net in nets.values():
        net.double()
    nets["C"].src.weight.data *= 30
    return nets


def train_both(recipe, steps, size=4, micro_batches=1):
    """Train by the recipe and plainly. Return the differences of terms and of parameters."""
    nets = make_networks(recipe)
    literal = copy.deepcopy(nets)
    objective = Objective(recipe, nets, LABELS)
    engine = ClippingEngine(objective, build_optimizers(nets, recipe.optim))
    optimizers = literal_optimizers(literal)
    for net in literal.values():
        net.eval()
    mode_seeking = any(term.name == "ms" for term in recipe.generator_terms)
    term_difference = 0.0
    for step in steps:
        batch = make_pairs(step, size)

        def draw(slot, shape, purpose, batch=batch):
            return normal_noise(batch.mix[slot : slot + 1], shape, PURPOSES[purpose])

        terms = objective.iterate(engine, batch.split(micro_batches), step)
        expected = literal_iteration(
            literal, optimizers, batch, step, draw, mode_seeking=mode_seeking
        )
        assert terms.keys() == expected.keys()
        differences = [abs(terms[name] - expected[name]).item() for name in expected]
        term_difference = max(term_difference, *differences)
    return term_difference, max_parameter_difference(nets, literal)


@pytest.mark.parametrize(
    ("name", "micro_batches"),
    [("drit", 1), pytest.param("drit", 2, marks=pytest.mark.slow), ("msgan", 1)],
)
def test_iterations_equal_the_literal_ones(name, micro_batches):
    """C steps in all of them, D, G and E in the last two."""
    differences = train_both(resolved(name), (0, 1, 2, 5), micro_batches=micro_batches)
    assert max(differences) <= 1e-9


DRIT = resolved("drit")
LATENT = DRIT.guides[1]


def with_weight(name, weight):
    return tuple(
        term._replace(weight=weight) if term.name == name else term for term in DRIT.generator_terms
    )


@pytest.mark.parametrize(
    ("mistake", "steps"),
    [
        ({"content_terms": (DRIT.content_terms[0]._replace(weight=0.01),)}, (0,)),
        ({"optim": replace(DRIT.optim, clip=ClipConfig(C=5.0))}, (0,)),
        ({"optim": replace(DRIT.optim, lr_content=1e-4)}, (0,)),
        ({"optim": replace(DRIT.optim, weight_decay=1e-4)}, (0, 1)),
        ({"content_noise": 0.5}, (0,)),
        ({"generator_terms": with_weight("cyc", 5.0)}, (2,)),
        *(
            pytest.param(mistake, (2,), marks=pytest.mark.slow)
            for mistake in (
                *({"generator_terms": with_weight(n, 20.0)} for n in ("dom", "adv", "idt", "sty")),
                *({"generator_terms": with_weight(n, 0.1)} for n in ("kl", "l2")),
                {"guides": (DRIT.guides[0], LATENT._replace(trains=("G", "E")))},
                {"guides": (DRIT.guides[0]._replace(trains=("G",)), LATENT)},
            )
        ),
    ],
)
def test_the_comparison_detects_another_recipe(mistake, steps):
    assert max(train_both(replace(DRIT, **mistake), steps, size=2)) > 1e-7


def test_the_rows_have_the_numbers_of_the_programs():
    """Losses are means over the two directions, half of the published sums."""
    for name, others in (("drit", {}), ("msgan", {"ms": 1})):
        recipe = recipes.resolve(Config(recipe=name)).recipe
        weights = {"dom": 1, "adv": 1, "kl": 0.01, "l2": 0.01, "idt": 10, "cyc": 10, "sty": 10}
        assert {term.name: term.weight for term in recipe.generator_terms} == weights | others
        assert [term.weight for term in recipe.discriminator_terms] == [1, 1]
        optim = recipe.optim
        assert (optim.lr, optim.betas, optim.ema) == (1e-4, (0.5, 0.999), 0)
        assert optim.lr_content == pytest.approx(1e-4 / 2.5)
        assert (2 * optim.weight_decay, 2 * optim.clip.C) == (1e-4, 5)
        assert (optim.decay_begin, optim.decay_end) == (375_000, 750_000)
        assert (recipe.discriminator_steps, recipe.every_iteration) == (3, ("C",))
        assert (recipe.targets, recipe.content_noise, recipe.uses_references) == ("other", 1, False)
        assert recipe.latent_dim == 8
        assert recipe.crop.probability == 1
        assert recipe.crop.area[0] ** 0.5 == recipe.crop.area[1] ** 0.5 == 216 / 256


def test_a_configuration_sets_the_weights_and_the_optimizer_of_c():
    config = Config(
        recipe="drit",
        loss=LossConfig(dom=3.0),
        optim=OptimConfig(lr_content=1e-3, clip=ClipConfig(C=0.0, G=1.0)),
    )
    spec = recipes.resolve(config)
    assert [t.weight for t in spec.recipe.terms if t.name == "dom"] == [3, 3]
    assert spec.config.optim.clip == ClipConfig(C=0.0, G=1.0)
    assert recipes.resolve(Config(recipe="drit")).config.optim.clip == ClipConfig(C=2.5)
    # So that runs of before there was C resume under a launcher that clips all gradients.
    without_c = recipes.resolve(Config(optim=OptimConfig(clip=ClipConfig(C=1.0))))
    assert without_c.config.optim.clip == ClipConfig()
    assert recipes.resolve(spec.config) == spec


def test_networks_of_other_iterations_and_guides_stay_as_they_are():
    """C steps in each iteration, and alone in two of three; E by encoded attributes alone."""
    nets = make_networks(DRIT)
    objective, steps = Objective(DRIT, nets, LABELS), []

    class Recorder(SingleProcessEngine):
        def update(self, module, calls, trains):
            steps.append((module, trains))
            return super().update(module, calls, trains)

    engine = Recorder(objective, build_optimizers(nets, DRIT.optim))
    for step in range(3):
        objective.iterate(engine, [make_pairs(step, 2)], step)
    c_alone, full = (
        [("C", ("C",))],
        [("D", ("D",)), ("C", ("C",)), ("G", ("G", "E")), ("G", ("G",))],
    )
    assert steps == [*c_alone, *c_alone, *full]
    assert all(p.grad is None for net in nets.values() for p in net.parameters())


@pytest.mark.parametrize("schedule", ["summed", "joint", "sparse"])
def test_rates_do_not_change_where_a_schedule_changes_no_steps(schedule):
    """D and C step once for all guides under any schedule, G half as often with one step."""
    objective = Objective(DRIT, make_networks(DRIT), LABELS, schedule)
    factors = {letter: objective.rate_factor(letter) for letter in "GEDC"}
    assert factors == {"G": 1 if schedule == "summed" else 2, "E": 1, "D": 1, "C": 1}


def test_partners_exchange_rows():
    assert of_partners(torch.arange(6)[:, None]).flatten().tolist() == [1, 0, 3, 2, 5, 4]


# Noise.


def test_noise_is_a_function_of_the_slot_and_the_purpose():
    draws = torch.rand(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = normal_noise(draws, (3, 5, 7), CONTENT)
    assert noise.shape == (4, 3, 5, 7)
    parts = [normal_noise(draws[i : i + 2], (3, 5, 7), CONTENT) for i in (0, 2)]
    assert torch.equal(torch.cat(parts), noise)
    assert not torch.isclose(normal_noise(draws, (3, 5, 7), ATTRIBUTE), noise).any()
    assert not torch.isclose(noise[0], noise[1]).any()
    single = normal_noise(draws.float(), (3, 5, 7), CONTENT)
    assert single.dtype == torch.float32


def test_noise_is_standard_normal_and_uncorrelated():
    draws = torch.arange(64) / 64 + 0.001
    noise = normal_noise(draws.double(), (4096,), CONTENT)
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / n) ** 0.5
    share = (noise.abs() > 1.959964).double().mean()
    assert abs(share - 0.05) < 4 * (0.05 * 0.95 / n) ** 0.5
    other = normal_noise(draws.double(), (4096,), CONTENT_OF_FAKE)
    pairs = [
        noise[:, 1:] * noise[:, :-1], noise[1:] * noise[:-1], noise * other,
        noise[:, :2048] * noise[:, 2048:], noise[:, :2048] ** 2 * noise[:, 2048:] ** 2 - 1,
    ]  # fmt: skip
    for products in pairs:
        assert abs(products.mean()) < 4 * products.std() / products.numel() ** 0.5
