"""What is told of memory, against real tensors."""

import json
import sys
from contextlib import nullcontext

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from stargan_dist import config as configs
from stargan_dist import memory
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError
from stargan_dist.objectives.recipes import resolve
from stargan_dist.training import memory_estimate
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


def make_config(*options):
    return resolve(configs.parse(["--config", str(SMOKE), *options]))


class Undistributed:
    """The verb of an engine, in one process. Keeps the bytes of each side's gradients."""

    def __init__(self, training):
        self.training, self.gradients = training, []

    keeps_graphs = True

    def update(self, module, calls, trains):
        module = self.training.objective.loss_modules[module]
        loss, terms = module(*calls[0])
        loss.backward()
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        self.gradients.append(sum(g.nbytes for g in grads))
        for name in trains:
            self.training.optimizers[name].step()
        module.zero_grad(set_to_none=True)
        return terms, {}


def iterated(config, batch_size):
    """Real parts of training after an iteration, and what engine they had."""
    training = TrainState(config, DOMAINS, torch.device("cpu"))
    engine = Undistributed(training)
    batch = blank_batch(config, DOMAINS, batch_size, training.dtype)
    training.objective.iterate(engine, [batch], 0)
    return training, engine


TWO_SETS = Labels((LabelSpace("a", ("x", "y"), binary=True), LabelSpace("b", ("x", "y"))))


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (DOMAINS, []),
        (DOMAINS, ["--model.mapping", "conditional"]),
        (DOMAINS, ["--recipe", "d"]),
        (TWO_SETS, ["--recipe", "stargan"]),
    ],
)
def test_the_simulation_counts_what_real_tensors_count(labels, options):
    config = make_config(*options)
    told = measure(config, labels, 2)
    assert told == measure(config, labels, 2, nullcontext())


def test_the_allocator_hands_out_what_is_told():
    """Activations and gradients, against torch's profiler, which sees workspaces as well."""
    config = make_config("--model.image_size", "64", "--model.base_width", "8")
    training, engine = iterated(config, 4)  # makes the moments
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        batch = blank_batch(config, DOMAINS, 4, training.dtype)
        training.objective.iterate(engine, [batch], 0)
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    told = estimate(config.config, DOMAINS)
    assert told.gradients + told.activations == pytest.approx(peak, rel=0.05)


def test_what_stays_is_what_training_has():
    config = make_config("--precision", "float64", "--batch_size", "2")
    training, engine = iterated(config, 2)
    told = estimate(config.config, DOMAINS)

    def size(networks):
        return sum(p.nbytes for net in networks.values() for p in net.parameters())

    moments = [
        state[name].nbytes
        for optimizer in training.optimizers.values()
        for state in optimizer.state.values()
        for name in ("exp_avg", "exp_avg_sq")
    ]
    assert told.weights == size(training.networks)
    assert told.averages == size(training.ema)
    assert told.optimizer == sum(moments)
    assert told.gradients == max(engine.gradients)
    assert told.buckets == 0


def test_zero_shares_by_stage():
    needs = UnshardedBytes(discriminator=80, generator=160, averages=150, passes=1000, steps=4000)
    told = [shard(needs, 8, stage) for stage in range(4)]
    assert [m.weights for m in told] == [240, 240, 240, 100]
    assert [m.gradients for m in told] == [160, 160, 20, 20]
    assert [m.buckets for m in told] == [240, 0, 0, 0]
    assert [m.optimizer for m in told] == [480, 60, 60, 60]
    assert [m.averages for m in told] == [150] * 4
    assert [m.activations for m in told] == [4000, 1000, 1000, 1000]
    assert told[0].total == 240 + 160 + 240 + 480 + 150 + 4000
    alone = [shard(needs, 1, stage) for stage in range(4)]
    assert alone == [alone[0]] * 4


def test_nothing_is_allocated():
    """F of 79 G parameters: no machine would have held it."""
    told = estimate(make_config("--model.mapping_dim", "512").config, domain_labels([""] * 100_000))
    assert told.weights > 300e9
    assert told.activations > 300e9  # a temporary of Adam


def test_counting_live_storages():
    counter = LiveBytes()
    with counter:
        a = torch.zeros(100)
        view = a[:50]
        assert (counter.live, counter.peak) == (400, 400)
        b = a + 1
        del a
        assert (counter.live, counter.take_peak()) == (800, 800)  # the view holds it
        del view
        assert counter.live == 400
        b.add_(1)
        assert counter.take_peak() == 800  # from the last call on
        assert counter.take_peak() == 400
        counter.exclude(b)
        assert counter.live == 0
        del b
        assert counter.live == 0


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(UserError, match="batch_size: 4 is the global batch"):
        estimate(make_config().config, DOMAINS, processes=3)


def tell(monkeypatch, capsys, *args):
    """What the command line prints."""
    line = ["memory", "--config", str(SMOKE), *map(str, args)]
    monkeypatch.setattr(sys, "argv", line)
    memory.main()
    return capsys.readouterr().out


def test_a_row_for_each_engine(monkeypatch, capsys, shards):
    monkeypatch.setattr(
        memory_estimate, "measure", lambda *_: UnshardedBytes(8e6, 16e6, 16e6, 50e6, 20e6)
    )
    out = tell(monkeypatch, capsys, "--data.shards", shards, "--processes", 2)
    assert out.startswith("3 domains, 32 px, float32, processes: 2, batch per process: 2\n")
    rows = [line.split() for line in out.splitlines()[2:7]]
    assert rows[0][:4] == ["MiB", "per", "GPU", "weights"]
    assert [row[0] for row in rows[1:]] == ["DDP", "ZeRO", "ZeRO", "ZeRO"]
    assert rows[1][-1] == f"{(24 + 16 + 24 + 48 + 16 + 50) * 1e6 / 2**20:.2f}"


def test_a_row_for_each_part_of_one_engine(monkeypatch, capsys):
    monkeypatch.setattr(
        memory_estimate, "measure", lambda *_: UnshardedBytes(1e9, 2e9, 2e9, 50e9, 20e9)
    )
    out = tell(monkeypatch, capsys, "--domains", 3, "--zero-stage", 2)
    rows = [line.split() for line in out.splitlines()[2:10]]
    assert rows[0] == ["GiB", "per", "GPU", "ZeRO", "2"]
    assert [row[0] for row in rows[1:]] == [*memory.Memory._fields, "total"]


def test_json_has_bytes(monkeypatch, capsys):
    told = json.loads(tell(monkeypatch, capsys, "--domains", 3, "--json"))
    assert list(told) == list(memory.ENGINES)
    assert all(row["total"] == sum(row.values()) - row["total"] for row in told.values())


def test_shards_that_are_missing(monkeypatch, capsys):
    with pytest.raises(UserError, match="--domains K"):
        tell(monkeypatch, capsys, "--data.shards", "/nowhere")
