import pytest
import torch

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import ClipConfig
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.engines.ddp import DDP
from stargan_dist.errors import UserError
from stargan_dist.runs import async_writer as savers
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.training.train_state import TrainState
from stargan_dist.training.trainer import FINISHED, _logged_at, train
from tests.conftest import SMOKE
from tests.helpers.runs import assert_same_bits

CPU = torch.device("cpu")


def smoke(run, shards, *args):
    return configs.parse(
        ["--config", str(SMOKE), "--run", str(run), "--data.shards", shards, *args]
    )


def test_a_run_on_another_file_system_resumes_too(shards, finished_run):
    run = "memory://elsewhere/run"
    assert train(smoke(run, shards, "--steps", "3")) == FINISHED
    assert checkpoints.find(run).step == 3
    assert train(smoke(run, shards)) == FINISHED
    assert_same_bits(run, finished_run)
    names = set(storage.list_names(run))
    assert {"config.yaml", "samples", "status.json", "tensorboard"} <= names
    storage.remove_folder("memory://elsewhere")


def test_the_average_starts_at_the_initial_weights_and_follows(shards):
    training = TrainState(smoke("r", shards, "--optim.ema", "0.75"), domain_labels(["a", "b"]), CPU)
    average, current = training.ema["G"].from_rgb.weight, training.networks["G"].from_rgb.weight
    begin = current.detach().clone()
    assert torch.equal(average, begin)
    with torch.no_grad():
        current += 1
    training.update_ema(DDP(training.parts, ClipConfig(), {}, World()))
    torch.testing.assert_close(average, begin + 0.25)
    assert set(training.ema) == {"G", "F", "E"}


def test_initial_weights_depend_on_the_seed_alone(shards):
    def weight(seed):
        torch.seed()  # whatever the global state is
        config = smoke("r", shards, "--seed", str(seed))
        return TrainState(config, domain_labels(["a", "b"]), CPU).networks["G"].from_rgb.weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


@pytest.mark.parametrize(("rule", "times"), [("off", 1), ("linear", 4), ("sqrt", 2)])
def test_rates_grow_with_the_batch_by_the_rule(shards, rule, times):
    config = smoke("r", shards, "--optim.lr_scaling", rule, "--batch_size", "32")
    training = TrainState(config, domain_labels(["a", "b"]), CPU)
    rates = {name: o.param_groups[0]["lr"] for name, o in training.optimizers.items()}
    assert rates["G"] == pytest.approx(times * 1e-4)
    assert rates["F"] == pytest.approx(times * 1e-6)


@pytest.mark.parametrize("failures", [1, 99])
def test_a_checkpoint_that_cannot_be_written_beside_the_training(
    shards, tmp_path, monkeypatch, caplog, failures
):
    """Once: it is told, and the run ends with what it would have. For good: the run ends."""
    original, calls = checkpoints.save, []

    def save(*args):
        calls.append(None)
        if len(calls) <= failures:
            raise UserError("cannot save the checkpoint: the disk is full")
        original(*args)

    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(savers, "WAIT_SECONDS", 0.0)
    config = smoke(tmp_path / "run", shards)
    if failures == 1:
        assert train(config) == FINISHED
        assert checkpoints.list_steps(config.run) == [2, 4, 6]
    else:
        with pytest.raises(UserError, match="the disk is full"):
            train(config)
    assert "the disk is full; training continues, retrying" in caplog.text


def test_the_mapping_network_has_its_own_learning_rate(shards):
    config = smoke("r", shards, "--optim.lr", "3e-4", "--optim.lr_mapping", "2e-6")
    training = TrainState(config, domain_labels(["a", "b"]), CPU)
    rates = {name: o.param_groups[0]["lr"] for name, o in training.optimizers.items()}
    assert rates == {"G": 3e-4, "F": 2e-6, "E": 3e-4, "D": 3e-4}


def test_steps_that_are_logged_are_of_each_set_in_turn():
    """By their numbers from 1: step s is of set (s - 1) mod sets."""
    assert [s for s in range(1, 13) if _logged_at(s, 4, 12, 1)] == [4, 8, 12]
    assert [s for s in range(1, 13) if _logged_at(s, 4, 13, 2)] == [3, 8, 11]
    assert [s for s in range(1, 20) if _logged_at(s, 6, 20, 3)] == [5, 10, 18]
    assert [s for s in range(1, 6) if _logged_at(s, 1, 5, 2)] == [1, 2, 3, 4, 5]
    assert _logged_at(13, 4, 13, 2)
