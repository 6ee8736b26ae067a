"""The trainer and its state: storage, averages, initial weights, learning rates, logged steps."""

from dataclasses import replace

import pytest
import torch

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config, InitConfig, OptimConfig
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.engines.ddp import DDP
from stargan_dist.errors import OutsideFault
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipes import resolve
from stargan_dist.runs import async_writer
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.training.train_state import TrainState, average_decay
from stargan_dist.training.trainer import FINISHED, logs_at, train
from tests.conftest import SMOKE
from tests.helpers.runs import assert_same_bits

CPU = torch.device("cpu")


def make_config(run, shards, *options):
    """Return the smoke configuration."""
    return configs.parse(
        ["--config", str(SMOKE), "--run", str(run), "--data.shards", shards, *options]
    )


def make_state(shards, *options):
    """Return a new state of training on two domains."""
    spec = resolve(make_config("r", shards, *options))
    return TrainState(spec, domain_labels(["a", "b"]), CPU)


def learning_rates(state):
    return {letter: o.param_groups[0]["lr"] for letter, o in state.optimizers.items()}


def test_a_run_on_another_file_system_resumes_too(shards, finished_run):
    run = "memory://elsewhere/run"
    assert train(make_config(run, shards, "--steps", "3")) == FINISHED
    assert checkpoints.find(run).step == 3
    assert train(make_config(run, shards)) == FINISHED
    assert_same_bits(run, finished_run)
    names = set(storage.list_names(run))
    assert {"config.yaml", "samples", "status.json", "tensorboard"} <= names
    storage.remove_folder("memory://elsewhere")


def test_the_average_starts_at_the_initial_weights_and_follows_the_network(shards):
    state = make_state(shards, "--optim.ema", "0.75")
    average, current = state.ema["G"].from_rgb.weight, state.networks["G"].from_rgb.weight
    initial = current.detach().clone()
    assert torch.equal(average, initial)
    with torch.no_grad():
        current += 1
    state.update_averages(DDP(state.parts, Config(), World()), step=0)
    torch.testing.assert_close(average, initial + 0.25)
    assert set(state.ema) == {"G", "F", "E"}


def test_averages_of_a_training_from_a_model_have_a_short_memory_at_first():
    config = Config(optim=OptimConfig(ema=0.99))
    assert [average_decay(config, step) for step in (0, 1000)] == [0.99, 0.99]
    config = replace(config, init=InitConfig("runs/old"))
    assert [average_decay(config, step) for step in (0, 90, 1000)] == [0.1, 0.91, 0.99]


def test_initial_weights_depend_on_the_seed_alone(shards):
    def weight(seed):
        torch.seed()  # another global random state each time
        return make_state(shards, "--seed", str(seed)).networks["G"].from_rgb.weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


@pytest.mark.parametrize(("rule", "factor"), [("off", 1), ("linear", 4), ("sqrt", 2)])
def test_learning_rates_scale_with_the_batch_by_the_rule(shards, rule, factor):
    rates = learning_rates(make_state(shards, "--optim.lr_scaling", rule, "--batch_size", "32"))
    assert rates["G"] == pytest.approx(factor * 1e-4)
    assert rates["F"] == pytest.approx(factor * 1e-6)


@pytest.mark.parametrize("failures", [1, 99])
def test_a_failed_background_write_of_a_checkpoint_is_repeated(
    shards, tmp_path, monkeypatch, caplog, failures
):
    """After one failure the run finishes with all checkpoints. After repeated failures it stops.
    The failure is reported in both cases."""
    original, calls = checkpoints.save, []

    def save(*args):
        calls.append(None)
        if len(calls) <= failures:
            raise OutsideFault("cannot save the checkpoint: the disk is full")
        original(*args)

    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(async_writer, "WAIT_SECONDS", 0.0)
    config = make_config(tmp_path / "run", shards)
    if failures == 1:
        assert train(config) == FINISHED
        assert checkpoints.list_steps(config.run) == [2, 4, 6]
    else:
        with pytest.raises(OutsideFault, match="the disk is full"):
            train(config)
    assert "the disk is full; retrying in 0 s" in caplog.text


def test_the_mapping_network_has_a_separate_learning_rate(shards):
    rates = learning_rates(make_state(shards, "--optim.lr", "3e-4", "--optim.lr_mapping", "2e-6"))
    assert rates == {"G": 3e-4, "F": 2e-6, "E": 3e-4, "D": 3e-4}


def test_a_joint_schedule_doubles_the_rates_of_networks_that_step_half_as_often(shards):
    state = make_state(shards, "--schedule", "joint", "--optim.lr", "1e-4")
    state.set_learning_rates(0)
    rates = learning_rates(state)
    assert (rates["G"], rates["D"], rates["E"]) == (2e-4, 2e-4, 1e-4)


def test_logged_steps_alternate_between_data_sources():
    """Steps are numbered from 1: step s belongs to source (s - 1) mod the number of sources."""
    assert [s for s in range(1, 13) if logs_at(s, 4, 12, 1)] == [4, 8, 12]
    assert [s for s in range(1, 13) if logs_at(s, 4, 13, 2)] == [3, 8, 11]
    assert [s for s in range(1, 20) if logs_at(s, 6, 20, 3)] == [4, 11, 18]
    assert [s for s in range(1, 20) if logs_at(s, 5, 20, 3)] == [4, 8, 15, 19]
    assert [s for s in range(1, 6) if logs_at(s, 1, 5, 2)] == [1, 2, 3, 4, 5]
    assert logs_at(13, 4, 13, 2)


def test_iterations_by_latents_load_no_references(shards, tmp_path, monkeypatch):
    loaded, iterate = [], Objective.iterate

    def recorded(self, engine, micro_batches, step):
        loaded.append(micro_batches[0].x_ref is not None)
        return iterate(self, engine, micro_batches, step)

    monkeypatch.setattr(Objective, "iterate", recorded)
    options = ("--schedule", "fast", "--steps", "4")
    assert train(make_config(tmp_path / "run", shards, *options)) == FINISHED
    assert loaded == [False, True, True, False]


def test_what_a_killed_training_left_is_removed(shards, tmp_path):
    folders = [tmp_path / "run" / name for name in ("", "checkpoints", "samples", "nonfinite")]
    for folder in folders:
        folder.mkdir()
        (folder / f"{storage.PARTIAL_PREFIX}x").touch()
    train(make_config(tmp_path / "run", shards, "--steps", "1", "--monitor.sample_every", "0"))
    assert not list(tmp_path.rglob(f"{storage.PARTIAL_PREFIX}*"))
