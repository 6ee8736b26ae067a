"""The iteration of CycleGAN and its pools against a literal implementation, in float64."""

import copy
from dataclasses import replace

import pytest
import torch

from baselines.cyclegan import from_pool, literal_iteration
from stargan_dist.config import Config
from stargan_dist.data.labels import domain_labels
from stargan_dist.errors import UserError
from stargan_dist.objectives import recipes
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.pool import FakePool
from stargan_dist.training.train_state import build_optimizers
from tests.objectives.test_objective import (
    SingleProcessEngine,
    make_pairs,
    max_parameter_difference,
)
from tests.objectives.test_recipes import MODEL

LABELS = domain_labels(["a", "b"])
RECIPE = replace(recipes.TABLE["cyclegan"], pool_size=2)
ITERATIONS = 6  # the pools are full after two


def train_both(recipe=RECIPE, micro_batches=1):
    """Train by the recipe and plainly. Return the differences of terms and of parameters."""
    torch.manual_seed(0)
    nets = recipe.build_networks(LABELS, MODEL)
    for net in nets.values():
        net.double()
    literal, pools = copy.deepcopy(nets), {}
    objective = Objective(recipe, nets, LABELS)
    engine = SingleProcessEngine(objective, build_optimizers(nets, recipe.optim))
    optimizers = build_optimizers(literal, recipe.optim)
    term_difference = 0.0
    for step in range(ITERATIONS):
        batch = make_pairs(step)
        terms = objective.iterate(engine, batch.split(micro_batches), step)
        expected = literal_iteration(literal, optimizers, batch, pools, RECIPE.pool_size)
        differences = [abs(terms.get(name, 0) - expected[name]).item() for name in expected]
        term_difference = max(term_difference, *differences)
    return term_difference, max_parameter_difference(nets, literal)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_iterations_equal_the_literal_ones(micro_batches):
    term_difference, parameter_difference = train_both(micro_batches=micro_batches)
    assert term_difference <= 1e-9
    assert parameter_difference <= 1e-9


@pytest.mark.parametrize(
    "mistake",
    [
        {"pool_size": 0},
        {"pool_size": 3},
        {"generator_first": False},
        {"generator_terms": RECIPE.generator_terms[:2]},
        {"discriminator_terms": RECIPE.discriminator_terms[:1]},
    ],
)
def test_the_comparison_detects_another_recipe(mistake):
    """Adam hides a factor of a whole loss, not of its parts."""
    assert train_both(replace(RECIPE, **mistake))[1] > 1e-6


def test_the_identity_is_the_source_translated_to_its_own_domain():
    torch.manual_seed(0)
    nets = RECIPE.build_networks(LABELS, MODEL)
    batch = make_pairs(0, 2)
    objective = Objective(RECIPE, {n: net.double() for n, net in nets.items()}, LABELS)
    _, terms = objective.generator(batch, RECIPE.guides, nets["D"], 0)
    own = [nets["G"].to_domain[y](x[None]) for x, y in zip(batch.x, batch.y, strict=True)]
    back = [
        nets["G"].to_domain[y](nets["G"].to_domain[1 - y](x[None]))
        for x, y in zip(batch.x, batch.y, strict=True)
    ]
    for name, images in (("idt", own), ("cyc", back)):
        expected = (torch.cat(images) - batch.x).abs().mean()
        assert terms[f"label/{name}"].item() == pytest.approx(expected.item(), abs=1e-12)
    assert terms["label/idt"] != terms["label/cyc"]


def test_the_row_has_the_numbers_of_the_paper():
    recipe = recipes.resolve(Config(recipe="cyclegan")).recipe
    terms = (*recipe.discriminator_terms, *recipe.generator_terms)
    weights = {"real": 0.5, "fake": 0.5, "adv": 1, "cyc": 10, "idt": 5}
    assert {term.name: term.weight for term in terms} == weights
    optim = recipe.optim
    assert (optim.lr, optim.betas, optim.weight_decay, optim.ema) == (2e-4, (0.5, 0.999), 0, 0)
    assert (optim.decay_begin, optim.decay_end) == (100_000, 200_000)
    assert (recipe.pool_size, recipe.targets, recipe.generator_first) == (50, "other", True)
    assert recipe.crop.probability == 1
    assert recipe.crop.area[0] ** 0.5 == recipe.crop.area[1] ** 0.5 == 256 / 286
    assert recipe.crop.ratio == (1, 1)


def test_more_than_two_domains_are_rejected_in_one_line_that_names_the_option():
    spec = recipes.resolve(Config(recipe="cyclegan"))
    recipes.check_labels(spec, LABELS)
    recipes.check_labels(recipes.resolve(Config(recipe="f")), domain_labels(["a", "b", "c"]))
    with pytest.raises(UserError, match=r"have 3: name two of a, b, c \(--data.pair '\[a, b\]'\)"):
        recipes.check_labels(spec, domain_labels(["a", "b", "c"]))


# Pools.


def numbered_fakes(steps, size=4):
    """Yield pairs of each step, and fakes whose pixels hold their step, slot and target domain."""
    for step in range(steps):
        batch = make_pairs(step, size)
        codes = 1000.0 * step + 10 * torch.arange(size) + batch.y_trg
        yield batch, codes[:, None, None, None].expand(size, 3, 2, 2)


def codes(images):
    return images[:, 0, 0, 0].int().tolist()


@pytest.mark.parametrize("size", [1, 3])
def test_pools_exchange_fakes_of_one_pair_and_domain(size):
    pool, pools, exchanged = FakePool(size), {}, 0
    for step, (batch, fakes) in enumerate(numbered_fakes(40)):
        (shown,) = pool.exchange([fakes], [batch], step)
        new, seen = codes(fakes), codes(shown)
        for slot, y_trg in enumerate(batch.y_trg.tolist()):
            earlier = pools.setdefault((slot // 2, y_trg), [])
            assert seen[slot] == from_pool(earlier, size, new[slot], batch.mix[slot].item())
            assert seen[slot] % 10 == y_trg
        exchanged += sum(a != b for a, b in zip(new, seen, strict=True))
    assert 40 < exchanged < 120  # about half of 160


def test_micro_batches_and_ranks_do_not_change_what_d_sees():
    whole, parts, ranks = FakePool(2), FakePool(2), [FakePool(2), FakePool(2)]
    for step, (batch, fakes) in enumerate(numbered_fakes(12)):
        halves, batches = [*fakes.split(2)], batch.split(2)
        (shown,) = whole.exchange([fakes], [batch], step)
        assert torch.equal(torch.cat(parts.exchange(halves, batches, step)), shown)
        pieces = [
            pool.exchange([half], [part], step)[0]
            for pool, half, part in zip(ranks, halves, batches, strict=True)
        ]
        assert torch.equal(torch.cat(pieces), shown)
        if step == 5:  # resumed by another number of processes
            images = torch.cat([pool.images for pool in ranks])
            assert torch.equal(images, whole.images)
            for rank, pool in enumerate(ranks):
                pool.load(images, rank, 2)
            parts.load(images, 0, 1)


def test_recipes_without_a_pool_store_nothing():
    pool, ((batch, fakes),) = FakePool(0), numbered_fakes(1)
    assert pool.exchange([fakes], [batch], 0)[0] is fakes
    assert pool.images is None
