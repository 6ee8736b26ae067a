"""Training that starts from a trained model."""

import pytest
import torch

from stargan_dist.runs import checkpoint as checkpoints
from tests.conftest import here

# With a rate this small and no averaging, one step moves weights by less than this.
RATE = "1e-12"


@pytest.fixture(scope="module")
def started(train, finished_run, tmp_path_factory):
    """A run that started from the finished run, and its first log lines."""
    run = tmp_path_factory.mktemp("init") / "run"
    done = here("train", *options(train, run, finished_run))
    return run, done.stdout


def options(train, run, model):
    rates = ("--optim.lr", RATE, "--optim.lr_mapping", RATE, "--optim.ema", "0")
    return (*train.options(run), "--init", model, "--steps", "1", *rates)


def test_all_networks_start_from_the_model(started, finished_run):
    run, output = started
    trained, model = (checkpoints.find(str(each)).state() for each in (run, finished_run))
    for name, tensor in trained.networks.items():
        old = model.networks[name] if name.startswith("D.") else model.ema[name]
        assert (tensor - old).abs().max() < 1e-6, name
    assert all((t - model.ema[name]).abs().max() < 1e-6 for name, t in trained.ema.items())
    assert "initial weights from" in output
    assert "D        all" in output
    different = [n for n, t in model.ema.items() if not torch.equal(t, model.networks[n])]
    assert different  # so that the comparison tells averages from networks


def test_the_same_command_resumes(started, train, finished_run):
    run, _ = started
    done = here("train", *options(train, run, finished_run), "--steps", "2")
    assert "initial weights" not in done.stdout
    assert checkpoints.find(str(run)).step == 2


def test_a_run_that_began_otherwise_is_not_started_again(train, started, finished_run, tmp_path):
    run, _ = started
    refused = here("train", *options(train, run, run), code=2)
    assert "init.model was" in refused.stderr
    assert "or another --run" in refused.stderr


def test_a_model_that_is_not_there_is_reported_in_one_line(train, tmp_path):
    refused = here("train", *options(train, tmp_path / "run", tmp_path / "missing"), code=2)
    assert "holds no model" in refused.stderr
    assert "Traceback" not in refused.stderr
