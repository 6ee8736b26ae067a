"""The iteration of MUNIT against a literal implementation, in float64."""

import copy
from dataclasses import replace

import pytest
import torch

from baselines.munit import literal_iteration
from stargan_dist.config import Config, LossConfig, OptimConfig
from stargan_dist.data.labels import domain_labels
from stargan_dist.objectives import recipes, terms
from stargan_dist.objectives.objective import Objective
from stargan_dist.training.train_state import build_optimizers
from tests.objectives.test_objective import (
    SingleProcessEngine,
    make_pairs,
    max_parameter_difference,
)
from tests.objectives.test_recipes import MODEL

LABELS = domain_labels(["a", "b"])
RECIPE = recipes.TABLE["munit"]
ITERATIONS = 2


def with_cycle(weight):
    config = Config(recipe="munit", loss=LossConfig(cyc=weight))
    return recipes.resolve(config).recipe


def train_both(recipe=RECIPE, micro_batches=1, cyc_weight=0.0):
    """Train by the recipe and plainly. Return the differences of terms and of parameters."""
    torch.manual_seed(0)
    nets = recipe.build_networks(LABELS, MODEL)
    for net in nets.values():
        net.double()
    literal = copy.deepcopy(nets)
    objective = Objective(recipe, nets, LABELS)
    engine = SingleProcessEngine(objective, build_optimizers(nets, recipe.optim))
    optimizers = build_optimizers(literal, RECIPE.optim)
    term_difference = 0.0
    for step in range(ITERATIONS):
        batch = make_pairs(step)
        terms = objective.iterate(engine, batch.split(micro_batches), step)
        expected = literal_iteration(literal, optimizers, batch, cyc_weight)
        names = terms.keys() | expected.keys()
        with torch.no_grad():
            differences = [abs(terms.get(name, 0) - expected.get(name, 0)) for name in names]
        term_difference = max(term_difference, *map(float, differences))
    return term_difference, max_parameter_difference(nets, literal)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("cyc_weight", [0.0, 10.0])
def test_iterations_equal_the_literal_ones(micro_batches, cyc_weight):
    term_difference, parameter_difference = train_both(
        with_cycle(cyc_weight), micro_batches, cyc_weight
    )
    assert term_difference <= 1e-9
    assert parameter_difference <= 1e-9


@pytest.mark.parametrize(
    "mistake",
    [
        {"generator_first": True},
        *({"generator_terms": tuple(t for t in RECIPE.generator_terms if t.name != name)}
          for name in ("adv", "idt", "sty", "con")),
        {"discriminator_terms": RECIPE.discriminator_terms[:1]},
        {"guides": (terms.BY_LABEL._replace(name="latent"),)},
        {"optim": replace(RECIPE.optim, weight_decay=1e-4)},
    ],
)  # fmt: skip
def test_the_comparison_detects_another_recipe(mistake):
    """Adam hides a factor of a whole loss, not of its parts."""
    assert train_both(replace(RECIPE, **mistake))[1] > 1e-7


def test_cycle_consistency_costs_nothing_until_it_is_asked_for():
    torch.manual_seed(0)
    for weight, decodings in ((None, 2), (0.0, 2), (10.0, 3)):
        recipe = with_cycle(weight)
        nets, calls = recipe.build_networks(LABELS, MODEL), []
        for net in nets.values():
            net.double()
        nets["G"].decoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        engine = SingleProcessEngine(objective := Objective(recipe, nets, LABELS),
                                     build_optimizers(nets, recipe.optim))  # fmt: skip
        terms = objective.iterate(engine, [make_pairs(0)], 0)
        assert len(calls) == decodings  # the fake, the source itself, and the cycle
        assert ("G/latent/cyc" in terms) == (weight == 10)


def test_the_row_has_the_numbers_of_the_paper():
    spec = recipes.resolve(Config(recipe="munit"))
    recipe, optim = spec.recipe, spec.config.optim
    terms = (*recipe.discriminator_terms, *recipe.generator_terms)
    weights = {"real": 1, "fake": 1, "adv": 1, "idt": 10, "sty": 1, "con": 1, "cyc": 0}
    assert {term.name: term.weight for term in terms} == weights
    assert (optim.lr, optim.betas, optim.ema) == (1e-4, (0.5, 0.999), 0)
    assert (optim.decay_begin, optim.decay_end, optim.halve_every) == (0, 0, 100_000)
    assert (recipe.pool_size, recipe.targets, recipe.generator_first) == (0, "other", False)
    assert (recipe.crop.probability, spec.config.model.latent_dim) == (0, 8)
    assert (recipe.uses_references, recipe.guided_by_references) == (False, True)


def test_l2_weighs_as_much_as_beside_the_sum_of_both_directions():
    """The published loss is a sum over two directions, with L2 of 1e-4; ours is their mean."""
    assert 2 * recipes.resolve(Config(recipe="munit")).config.optim.weight_decay == 1e-4


def test_a_configured_length_of_latents_and_rate_override_those_of_the_row():
    config = Config(recipe="munit", model=MODEL, optim=OptimConfig(halve_every=7))
    resolved = recipes.resolve(config).config
    assert (resolved.model.latent_dim, resolved.optim.halve_every) == (5, 7)
    assert recipes.resolve(Config(recipe="d")).config.model.latent_dim == 16
