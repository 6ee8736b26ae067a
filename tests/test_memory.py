"""Estimates of memory against real tensors, and the command line that prints them."""

import json
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from stargan_dist import config as configs
from stargan_dist import memory
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError
from stargan_dist.objectives import recipes
from stargan_dist.objectives.recipes import resolve
from stargan_dist.training import memory_estimate
from stargan_dist.training.domain_costs import domain_costs
from stargan_dist.training.memory_estimate import (
    LiveBytes,
    UnshardedBytes,
    blank_batch,
    estimate,
    measure,
    shard,
)
from stargan_dist.training.train_state import TrainState
from tests.conftest import SMOKE

DOMAINS = domain_labels(["a", "b", "c"])


def make_spec(*options):
    return resolve(configs.parse(["--config", str(SMOKE), *options]))


class GradientSizeEngine:
    """A plain `Updater` in one process.

    Attributes:
        gradient_bytes: size of the gradients of a loss module, in the order of the updates.
    """

    keeps_graphs = True

    def __init__(self, state):
        self.state, self.gradient_bytes = state, []

    def update(self, module, calls, trains):
        loss_module = self.state.objective.loss_modules[module]
        loss, terms = loss_module(*calls[0])
        loss.backward()
        gradients = [p.grad for p in loss_module.parameters() if p.grad is not None]
        self.gradient_bytes.append(sum(g.nbytes for g in gradients))
        for letter in trains:
            self.state.optimizers[letter].step()
        loss_module.zero_grad(set_to_none=True)
        return terms, {}


def train_one_iteration(spec, batch_size):
    """Return the state of training after an iteration on real tensors, and its engine."""
    state = TrainState(spec, DOMAINS, torch.device("cpu"))
    engine = GradientSizeEngine(state)
    batch = blank_batch(spec, DOMAINS, batch_size, state.dtype)
    state.objective.iterate(engine, [batch], 0)
    return state, engine


PAIR = domain_labels(["a", "b"])
TWO_SOURCES = Labels((LabelSpace("a", ("x", "y"), binary=True), LabelSpace("b", ("x", "y"))))


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (DOMAINS, []),
        (DOMAINS, ["--model.mapping", "conditional"]),
        (DOMAINS, ["--recipe", "d"]),
        (DOMAINS, ["--model.w_hpf", "1"]),
        (DOMAINS, ["--schedule", "sparse"]),
        (DOMAINS, ["--schedule", "fast"]),
        (TWO_SOURCES, ["--recipe", "stargan"]),
        (PAIR, ["--recipe", "cyclegan"]),
        (PAIR, ["--recipe", "munit"]),
        (PAIR, ["--recipe", "msgan"]),
    ],
)
def test_tensors_without_memory_give_the_same_count_as_real_ones(labels, options):
    spec = make_spec(*options)
    measured = measure(spec, labels, 2)
    assert measured == measure(spec, labels, 2, nullcontext())
    assert measured.landmarks == (4 * 6_333_603 if spec.config.model.w_hpf else 0)


def test_a_lazy_term_is_a_part_of_the_estimate():
    """R1 decides the peak of D's step, in whichever iteration it is computed."""
    peaks = [
        measure(make_spec("--schedule", n), DOMAINS, 2).passes for n in ("joint", "joint_lazy")
    ]
    assert peaks[0] == peaks[1]


def test_activations_and_gradients_match_the_peak_allocation_of_the_profiler():
    """Within 5 %: torch's profiler counts workspaces as well."""
    spec = make_spec("--model.image_size", "64", "--model.base_width", "8")
    state, engine = train_one_iteration(spec, 4)  # creates the moments
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        batch = blank_batch(spec, DOMAINS, 4, state.dtype)
        state.objective.iterate(engine, [batch], 0)
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    estimated = estimate(spec.config, DOMAINS)
    assert estimated.gradients + estimated.activations == pytest.approx(peak, rel=0.05)


def test_weights_averages_moments_and_gradients_have_the_estimated_sizes():
    spec = make_spec("--precision", "float64", "--batch_size", "2")
    state, engine = train_one_iteration(spec, 2)
    estimated = estimate(spec.config, DOMAINS)

    def size(networks):
        return sum(p.nbytes for net in networks.values() for p in net.parameters())

    moment_sizes = [
        moments[name].nbytes
        for optimizer in state.optimizers.values()
        for moments in optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    ]
    assert estimated.weights == size(state.networks)
    assert estimated.averages == size(state.ema)
    assert estimated.optimizer == sum(moment_sizes)
    assert estimated.gradients == max(engine.gradient_bytes)
    assert estimated.buckets == 0


def test_zero_shards_more_parts_at_each_stage():
    unsharded = UnshardedBytes(
        discriminator=80, generator=160, averages=150, passes=1000, steps=4000
    )
    by_stage = [shard(unsharded, 8, stage) for stage in range(4)]
    assert [m.weights for m in by_stage] == [240, 240, 240, 100]
    assert [m.gradients for m in by_stage] == [160, 160, 20, 20]
    assert [m.buckets for m in by_stage] == [240, 0, 0, 0]
    assert [m.optimizer for m in by_stage] == [480, 60, 60, 60]
    assert [m.averages for m in by_stage] == [150] * 4
    assert [m.activations for m in by_stage] == [4000, 1000, 1000, 1000]
    assert by_stage[0].total == 240 + 160 + 240 + 480 + 150 + 4000
    one_process = [shard(unsharded, 1, stage) for stage in range(4)]
    assert one_process == [one_process[0]] * 4


def test_an_estimate_allocates_no_weights():
    """F has 79 billion parameters here: 316 GB, which no test machine can allocate."""
    spec = make_spec("--model.mapping_dim", "512")
    estimated = estimate(spec.config, domain_labels([""] * 100_000))
    assert estimated.weights > 300e9
    assert estimated.activations > 300e9  # a temporary of Adam


def test_live_bytes_counts_storages_while_they_are_alive():
    counter = LiveBytes()
    with counter:
        a = torch.zeros(100)
        view = a[:50]
        assert (counter.live, counter.peak) == (400, 400)
        b = a + 1
        del a
        assert (counter.live, counter.take_peak()) == (800, 800)  # the view keeps the storage
        del view
        assert counter.live == 400
        b.add_(1)
        assert counter.take_peak() == 800  # since the last call
        assert counter.take_peak() == 400
        counter.exclude(b)
        assert counter.live == 0
        del b
        assert counter.live == 0


def test_the_pool_of_fakes_is_a_part_of_the_estimate():
    """50 fakes for each source of a process, while everything else is allocated."""
    spec = make_spec("--recipe", "cyclegan")
    without = replace(spec, recipe=replace(spec.recipe, pool_size=0))
    passes, passes_without = (measure(s, PAIR, 2, nullcontext()).passes for s in (spec, without))
    assert passes - passes_without == pytest.approx(2 * 50 * 3 * 32**2 * 4, rel=0.01)


def test_a_recipe_for_pairs_rejects_other_labels_and_halves_of_pairs():
    config = make_spec("--recipe", "cyclegan").config
    with pytest.raises(UserError, match=r"data\.pair"):
        estimate(config, DOMAINS)
    with pytest.raises(UserError, match="times 2 for pairs"):
        estimate(config, PAIR, processes=4)


def test_a_batch_that_does_not_divide_among_the_processes_is_rejected():
    with pytest.raises(UserError, match="batch_size: 4 is the global batch"):
        estimate(make_spec().config, DOMAINS, processes=3)


def run_memory(monkeypatch, capsys, *args):
    """Run the command line. Returns its standard output."""
    argv = ["memory", "--config", str(SMOKE), *map(str, args)]
    monkeypatch.setattr(sys, "argv", argv)
    memory.main()
    return capsys.readouterr().out


def test_the_table_has_one_row_per_engine(monkeypatch, capsys, shards):
    monkeypatch.setattr(
        memory_estimate, "measure", lambda *_: UnshardedBytes(8e6, 16e6, 16e6, 50e6, 20e6)
    )
    out = run_memory(monkeypatch, capsys, "--data.shards", shards, "--processes", 2)
    assert out.startswith("3 domains, 32 px, float32, processes: 2, batch per process: 2\n")
    rows = [line.split() for line in out.splitlines()[2:7]]
    assert rows[0][:4] == ["MiB", "per", "GPU", "weights"]
    assert [row[0] for row in rows[1:]] == ["DDP", "ZeRO", "ZeRO", "ZeRO"]
    assert rows[1][-1] == f"{(24 + 16 + 24 + 48 + 16 + 50) * 1e6 / 2**20:.2f}"


def test_the_table_of_a_single_engine_has_one_row_per_part(monkeypatch, capsys):
    monkeypatch.setattr(
        memory_estimate, "measure", lambda *_: UnshardedBytes(1e9, 2e9, 2e9, 50e9, 20e9)
    )
    out = run_memory(monkeypatch, capsys, "--domains", 3, "--zero-stage", 2)
    rows = [line.split() for line in out.splitlines()[2:10]]
    assert rows[0] == ["GiB", "per", "GPU", "ZeRO", "2"]
    assert [row[0] for row in rows[1:]] == [*memory.Memory._fields, "total"]


def test_json_output_has_the_bytes_of_all_engines(monkeypatch, capsys):
    estimates = json.loads(run_memory(monkeypatch, capsys, "--domains", 3, "--json"))
    assert list(estimates) == list(memory.ENGINES)
    assert all(row["total"] == sum(row.values()) - row["total"] for row in estimates.values())


# The costs of more domains.


def size_of(recipe, labels, letters=None):
    """Return the number of elements of real networks."""
    spec = make_spec("--recipe", recipe)
    networks = spec.recipe.build_networks(labels, spec.config.model)
    return sum(p.numel() for n in letters or networks for p in networks[n].parameters())


def test_a_recipe_between_two_domains_costs_a_training_for_each_pair():
    costs = domain_costs(configs.parse(["--config", str(SMOKE)]), "cyclegan", 5)
    assert (costs.recipe, costs.domains, costs.runs) == ("cyclegan", 5, 10)
    assert costs.trained == 10 * size_of("cyclegan", PAIR)
    assert costs.translating == 10 * size_of("cyclegan", PAIR, "G")
    assert costs.state_bytes == 3 * 4 * costs.trained


@pytest.mark.parametrize(("recipe", "letters"), [("stargan", "G"), ("f", "GFE")])
def test_another_recipe_costs_one_training(recipe, letters):
    labels = domain_labels([*"abcde"])
    costs = domain_costs(configs.parse(["--config", str(SMOKE)]), recipe, 5)
    assert costs.runs == 1
    assert costs.trained == size_of(recipe, labels)
    assert costs.translating == size_of(recipe, labels, letters)


@pytest.mark.parametrize("recipe", recipes.TABLE)
def test_a_pair_costs_one_training_of_any_recipe(recipe):
    config = configs.parse(["--config", str(SMOKE), "--schedule", "fast"])
    costs = domain_costs(config, recipe, 2)
    assert (costs.runs, costs.trained) == (1, size_of(recipe, PAIR))


def test_the_bytes_of_costs_are_those_of_the_weights_dtype():
    config = make_spec("--precision", "float64").config
    costs = domain_costs(config, "f", 3)
    assert costs.state_bytes == 3 * 8 * costs.trained
    estimated = estimate(config, DOMAINS)
    assert costs.state_bytes == estimated.weights + estimated.optimizer


def test_the_costs_of_recipes_are_a_table(monkeypatch, capsys):
    out = run_memory(monkeypatch, capsys, "--domains", 3, 40, "--recipes", "cyclegan", "f")
    assert out.startswith("32 px, float32, in sum over all trainings\n")
    rows = [line.split() for line in out.splitlines()[3:]]
    counts = [("cyclegan", "3", "3"), ("cyclegan", "40", "780"), ("f", "3", "1"), ("f", "40", "1")]
    assert [tuple(row[:3]) for row in rows] == counts
    costs = domain_costs(configs.parse(["--config", str(SMOKE)]), "cyclegan", 40)
    assert rows[1][3:7:2] == [f"{n / 1e6:.1f}" for n in (costs.trained, costs.translating)]
    assert rows[1][-1] == f"{costs.state_bytes / 2**30:.2f}"


def test_costs_as_json_are_those_of_the_configurations_recipe(monkeypatch, capsys):
    found = json.loads(run_memory(monkeypatch, capsys, "--domains", 2, 3, "--json"))
    config = configs.parse(["--config", str(SMOKE)])
    assert found == [domain_costs(config, "f", count)._asdict() for count in (2, 3)]


@pytest.mark.parametrize(
    "options",
    [
        ("--domains", 2, 3, "--processes", 2),
        ("--domains", 3, "--recipes", "f", "--zero-stage", 1),
        ("--recipes", "f"),
        ("--domains", 0, 3),
    ],
)
def test_options_that_costs_do_not_have_are_rejected(monkeypatch, capsys, options):
    with pytest.raises(SystemExit):
        run_memory(monkeypatch, capsys, *options)


def test_the_error_for_missing_shards_suggests_the_option_domains(monkeypatch, capsys):
    with pytest.raises(UserError, match="--domains K"):
        run_memory(monkeypatch, capsys, "--data.shards", "/nowhere")
