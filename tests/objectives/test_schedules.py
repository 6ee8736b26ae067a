"""Every schedule against a plain implementation of its row, in float64."""

import copy
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest

from baselines.iteration import scheduled_iteration
from baselines.networks import make_plain
from stargan_dist.config import rules
from stargan_dist.config.fields import Config
from stargan_dist.data.labels import Labels, LabelSpace
from stargan_dist.data.order import turn_of
from stargan_dist.errors import UserError
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipe import Term
from stargan_dist.objectives.recipes import TABLE, resolve
from stargan_dist.objectives.schedules import SCHEDULES, Schedule
from stargan_dist.training.train_state import build_optimizers
from tests.objectives.test_objective import (
    ITERATIONS,
    OPTIM,
    WEIGHTS,
    SingleProcessEngine,
    make_batch,
    make_networks,
    make_objective,
    max_parameter_difference,
)

FAST = SCHEDULES["fast"]
# Short periods, so that few iterations have all cases; more of them where each has one guide.
PERIODS = {"reg": 2, "ds": 2, "cyc": 3}
ALTERNATING_ITERATIONS = 6


def short(row):
    return replace(row, every={name: PERIODS[name] for name in row.every})


def train_both(row, literal_row=None):
    """Train by a schedule and plainly. Return the differences of terms and of parameters."""
    nets = make_networks()
    literal = make_plain(copy.deepcopy(nets))
    objective = make_objective(nets, WEIGHTS)
    objective.schedule = row
    engine = SingleProcessEngine(objective, build_optimizers(nets, OPTIM))
    optimizers = build_optimizers(literal, OPTIM)
    term_difference = 0.0
    for step in range(ALTERNATING_ITERATIONS if row.alternating else ITERATIONS):
        batch, lambda_ds = make_batch(step), WEIGHTS.ds * (1 - step / WEIGHTS.ds_iter)
        terms = objective.iterate(engine, [batch], step)
        expected = scheduled_iteration(
            literal, optimizers, batch, WEIGHTS, lambda_ds, literal_row or row, step
        )
        assert literal_row or terms.keys() == expected.keys()
        shared = terms.keys() & expected.keys()
        differences = [abs(terms[name] - expected[name]).item() for name in shared]
        term_difference = max(term_difference, *differences)
    return term_difference, max_parameter_difference(nets, literal)


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_iteration_of_every_schedule_equals_the_plain_one(name):
    term_difference, parameter_difference = train_both(short(SCHEDULES[name]))
    assert term_difference <= 1e-9
    assert parameter_difference <= 1e-9


def test_the_comparison_detects_a_lazy_term_without_its_factor(monkeypatch):
    def due(self, terms, iteration, guide=0):
        return [t for t in terms if (iteration + 1) % self.every.get(t.name, 1) == 0]

    monkeypatch.setattr(Schedule, "due", due)
    assert train_both(Schedule("", every={"reg": 2}))[1] > 1e-6


def test_the_comparison_detects_a_step_for_each_guide():
    assert train_both(SCHEDULES["published"], SCHEDULES["summed"])[1] > 1e-6


def test_a_lazy_term_has_its_mean_weight():
    row = Schedule("", every={"reg": 4})
    terms = [Term("real", lambda _: None), Term("reg", lambda _: None, 0.5)]
    weights = [{t.name: t.weight for t in row.due(terms, i)} for i in range(8)]
    assert weights == [{"real": 1.0}] * 3 + [{"real": 1.0, "reg": 2.0}] + (
        [{"real": 1.0}] * 3 + [{"real": 1.0, "reg": 2.0}]
    )


def test_terms_and_guides_take_turns():
    row, terms = Schedule("", every={"ds": 2, "cyc": 2}), [Term("ds", None), Term("cyc", None)]
    names = [[[t.name for t in row.due(terms, i, guide)] for guide in (0, 1)] for i in (0, 1)]
    assert names == [[["cyc"], ["ds"]], [["ds"], ["cyc"]]]


def test_a_network_that_steps_once_for_two_guides_has_twice_its_rate():
    guides, row = TABLE["f"].guides, replace(SCHEDULES["joint"], scales_rates=True)
    factors = {letter: row.rate_factor(letter, guides) for letter in "GFED"}
    assert factors == {"G": 2, "F": 1, "E": 1, "D": 2}  # references train G alone
    only_generator = replace(row, joint_discriminator=False)
    assert [only_generator.rate_factor(letter, guides) for letter in "GD"] == [2, 1]
    assert {FAST.rate_factor(letter, guides) for letter in "GFED"} == {2}
    for schedule in (row, FAST):
        assert {schedule.rate_factor(letter, TABLE["d"].guides) for letter in "GED"} == {1}
    assert SCHEDULES["summed"].rate_factor("G", guides) == 1


def test_terms_of_the_generator_count_its_own_iterations():
    """G of some recipes steps in every fifth iteration."""
    recipe = replace(TABLE["f"], discriminator_steps=5)
    nets = make_networks()
    objective = make_objective(nets, WEIGHTS)
    objective.recipe, objective.schedule = recipe, Schedule("", every={"cyc": 2})
    engine = SingleProcessEngine(objective, build_optimizers(nets, OPTIM))
    with_cycle = {"latent": [], "reference": []}
    for step in range(20):
        terms = objective.iterate(engine, [make_batch(step)], step)
        for guide in with_cycle:
            with_cycle[guide] += [step] * (f"G/{guide}/cyc" in terms)
    assert with_cycle == {"latent": [9, 19], "reference": [4, 14]}


def test_alternating_guides_take_turns():
    """Each guide counts its own iterations; in all of them one guide alone has steps."""
    nets = make_networks()
    objective = make_objective(nets, WEIGHTS)
    objective.schedule = replace(FAST, every={"reg": 4, "cyc": 2})
    engine = SingleProcessEngine(objective, build_optimizers(nets, OPTIM))
    terms = [{*objective.iterate(engine, [make_batch(step)], step)} for step in range(8)]
    names = [{name.split("/")[1] for name in of_step} for of_step in terms]
    latent, reference = {"latent"}, {"reference"}
    assert names == [latent, reference, reference, latent, reference, latent, latent, reference]
    steps_with = {
        name: [step for step in range(8) if f"G/{name}/cyc" in terms[step]]
        for name in ("latent", "reference")
    }
    assert steps_with == {
        "latent": [0, 5],
        "reference": [2, 7],
    }  # each guide's 1st and 3rd; 2nd, 4th
    assert [step for step in range(8) if any("reg" in name for name in terms[step])] == [3, 7]
    assert objective.period == 8


@pytest.mark.parametrize("num_workers", [1, 2, 4, 8])
def test_each_loader_worker_has_both_turns(num_workers):
    """Batches go to workers in turn; those by references take longer to load."""
    numbers = range(64)
    assert {turn_of(2 * k, 2) + turn_of(2 * k + 1, 2) for k in numbers} == {1}
    of_first_worker = [turn_of(n, 2) for n in numbers[::num_workers]]
    assert sum(of_first_worker) == len(of_first_worker) / 2
    assert {turn_of(n, 1) for n in numbers} == {0}


def test_every_data_source_has_all_guides_in_turn():
    spaces = (LabelSpace("a", ("x", "y")), LabelSpace("b", ("x", "y")))
    nets = make_networks()
    objective = Objective(TABLE["f"], nets, Labels(spaces), "fast")
    names = [objective.guides(step)[0].name for step in range(6)]
    assert names == ["latent", "latent", "reference", "reference", "reference", "reference"]
    assert objective.reference_turns == [False, True]


@pytest.mark.parametrize("recipe", ["drit", "msgan"])
def test_a_recipe_with_a_discriminator_for_each_guide_does_not_alternate(recipe):
    with pytest.raises(UserError, match=rf"recipe {recipe} .* under fast .*published"):
        resolve(Config(recipe=recipe, schedule="fast"))


def test_names_in_the_configuration_agree_with_the_table():
    assert {*get_args(get_type_hints(Config)["schedule"])} == {*SCHEDULES, "exact"}
    joint = {n for n, row in SCHEDULES.items() if row.joint_generator and not row.alternating}
    assert {*rules.STEPS_OF_ALL_GUIDES} == joint
