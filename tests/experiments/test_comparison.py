"""The comparison of methods: budgets, costs, tables, the picture's cells; no training."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "experiments"))

import comparison
import comparison_methods as methods
import comparison_table as tables
import iteration_flops
import study

from stargan_dist import config as configs
from stargan_dist.config import rules
from stargan_dist.data.split import LoadedSplit
from stargan_dist.errors import UserError
from stargan_dist.objectives.recipes import TABLE, resolve

STEPS, SPECIES = 30, ["cat", "dog", "rabbit"]
PAIRS = [("cat", "dog"), ("cat", "rabbit"), ("dog", "rabbit")]


@pytest.fixture(scope="module")
def plan():
    return methods.plan_of([*methods.METHODS], ["images", "flops"], SPECIES, STEPS)


def figures(row, seed=0, fid=20.0, diversity=0.3, images=320, seconds=10.0):
    return {
        "row": row, "seed": seed, "steps": STEPS, "seconds": seconds, "demo_fid": fid,
        "diversity": diversity, "accuracy": 0.9, "pose_px": 1.0, "spread": 0.5, "images": images,
    }  # fmt: skip


# Budgets.


def test_the_reference_has_one_run_for_both_budgets_and_pairs_have_one_each(plan):
    assert plan.parts_of("f", "images") == plan.parts_of("f", "flops") == ["f"]
    assert plan.parts_of("stargan", "flops") == ["flops/stargan"]
    rows = plan.parts_of("cyclegan", "images")
    assert rows == [f"images/cyclegan-{a}-{b}" for a, b in PAIRS]


def test_all_methods_see_as_many_images_or_spend_as_many_flops(plan):
    budget = STEPS * methods.BATCH
    gflop = budget * plan.costs["f"].training_gflop
    for name, method in methods.METHODS.items():
        rows = {budget: plan.parts_of(name, budget) for budget in plan.budgets}
        images = {budget: sum(map(plan.images, of)) for budget, of in rows.items()}
        batches = method.batch * len(rows["images"])  # each run has whole batches
        assert abs(images["images"] - budget) <= batches / 2
        spent = images["flops"] * plan.costs[name].training_gflop
        assert abs(spent - gflop) <= batches / 2 * plan.costs[name].training_gflop


def test_the_cost_of_training_is_that_of_the_benchmark():
    spec = methods.spec_of("f")
    networks = spec.recipe.build_networks(methods.domain_labels(SPECIES), spec.config.model)
    batch = methods.pair_batch(spec)
    expected = iteration_flops.count_gflop(networks, batch, iteration_flops.no_masks)
    assert methods.cost_of("f", 3).training_gflop == pytest.approx(expected)


def test_parameters_are_those_of_the_networks_that_translate():
    spec = methods.spec_of("cyclegan")
    networks = spec.recipe.build_networks(methods.domain_labels(SPECIES[:2]), spec.config.model)
    expected = sum(p.numel() for p in networks["G"].parameters())
    assert methods.cost_of("cyclegan", 3).parameters == expected


# A run.


@pytest.mark.parametrize("name", methods.METHODS)
def test_trainings_have_the_batch_and_the_schedule_of_their_method(plan, name, tmp_path):
    row = plan.parts_of(name, "images")[0]
    (run,) = study.list_runs([row], 1, tmp_path)
    options = comparison.training_options(run, plan, "s")
    config = resolve(configs.parse(options)).config
    optim = TABLE[name].optim
    assert (config.recipe, config.steps) == (name, plan.steps(row))
    assert config.batch_size == methods.METHODS[name].batch
    assert config.optim.decay_end == (config.steps if optim.decay_end else 0)
    assert tuple(config.data.pair) == plan.parts[row].pair
    assert bool(config.data.pair) == TABLE[name].takes_pairs


@pytest.mark.parametrize("name", methods.METHODS)
def test_as_many_processes_as_are_allowed_can_share_a_batch(plan, name, tmp_path):
    row = plan.parts_of(name, "flops")[-1]
    (run,) = study.list_runs([row], 1, tmp_path)
    config = resolve(configs.parse(comparison.training_options(run, plan, "s"))).config
    most, together = plan.most_processes(row), 2 if TABLE[name].takes_pairs else 1
    rules.check_world(config, most, together)
    with pytest.raises(UserError, match="must be a multiple"):
        rules.check_world(config, 2 * most, together)


# The tables.


def test_a_method_of_pairs_has_the_means_over_all_its_pairs(plan):
    rows = plan.parts_of("cyclegan", "images")
    runs = [figures(row, fid=fid) for row, fid in zip(rows, (10, 20, 60), strict=True)]
    (row,) = tables.complete_rows(runs, plan)["images"]
    assert (row["row"], row["demo_fid"], row["images"], row["seconds"]) == ("cyclegan", 30, 960, 30)
    assert tables.complete_rows(runs[1:], plan) == {"images": [], "flops": []}
    runs[0]["seconds"] = None  # it was interrupted
    (row,) = tables.complete_rows(runs, plan)["images"]
    assert row["seconds"] is None


def test_the_table_has_costs_of_all_pairs_and_the_papers_figures(plan):
    rows = [figures("munit", 0, 20), figures("munit", 1, 30), figures("f", 0, 10)]
    lines = tables.table(rows, plan, "images").splitlines()
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in cells}) == 1
    by_name = {row[0]: row for row in cells[2:]}
    assert [*by_name] == [method.title for method in methods.METHODS.values()]
    munit, of_all = by_name["MUNIT"], 3 * plan.costs["munit"].parameters / 1e6
    assert munit[1:3] == ["3", f"{of_all:.3g}"] and munit[6:8] == ["2", "25.00 ± 7.1"]
    assert munit[-1] == "31.4, 0.363; 41.5, 0.511" and by_name["CycleGAN"][-1] == "–"


def test_the_papers_statements_are_judged():
    rows = [
        figures(name, seed, fid + seed / 10, diversity + seed / 1000)
        for seed in (0, 1)
        for name, fid, diversity in (
            ("cyclegan", 30, 0), ("munit", 40, 0.2), ("drit", 50, 0.1), ("msgan", 20, 0.3),
            ("f", 30, 0.3),
        )
    ]  # fmt: skip
    cyclegan, munit, drit, msgan, diverse, order = tables.order_lines(rows)
    assert cyclegan.startswith("CycleGAN has no diversity: not shown, 1 of 2 seeds")
    assert "than MUNIT: shown" in munit and "than DRIT: shown" in drit
    assert "than MSGAN: not shown, but the opposite" in msgan
    assert diverse.startswith("MSGAN is more diverse (demo_lpips) than DRIT: shown")
    assert order.endswith("MSGAN, CycleGAN, StarGAN v2, MUNIT, DRIT")


# The picture.


class Brightness:
    """Translates into the brightness of a number."""

    def __init__(self, domains, value):
        self.domains, self.value = domains, value
        self.config = SimpleNamespace(model=SimpleNamespace(latent_dim=8))

    def from_latents(self, x, y_trg, z):
        return torch.full((len(z), *x.shape[1:]), self.value + 0.1 * float(y_trg[0]))


def test_each_target_is_that_of_the_pair_that_knows_it():
    images = torch.full((3, 3, 4, 4), 128, dtype=torch.uint8)
    sources = LoadedSplit(images, torch.arange(3), ["a", "b", "c"], SPECIES)
    pairs = [Brightness(pair, i / 4) for i, pair in enumerate(map(list, PAIRS))]
    cells = comparison.translate_row(pairs, sources, 1)[1 :: comparison.LATENTS]
    assert cells[:, 0, 0, 0].tolist() == pytest.approx([0.0, 1.0, 0.6])  # white: dog to dog
    cells = comparison.translate_row([Brightness(SPECIES, 0.5)], sources, 1)
    assert cells[1 :: comparison.LATENTS, 0, 0, 0].tolist() == pytest.approx([0.5, 0.6, 0.7])
