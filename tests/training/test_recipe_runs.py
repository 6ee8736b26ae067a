"""Every row of the table through the trainer: it learns what it says, and resumes to the bit."""

import pytest
import torch

from stargan_dist import config as configs
from stargan_dist.data.labels import domain_labels
from stargan_dist.inference.translator import Translator
from stargan_dist.objectives import recipes
from stargan_dist.objectives.recipes import resolve
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.training.train_state import TrainState
from stargan_dist.training.trainer import FINISHED, train
from tests.conftest import SMOKE
from tests.helpers.runs import assert_same_bits

CPU = torch.device("cpu")


def options(run, shards, *args):
    quiet = ("--monitor.sample_every", "0", "--checkpoint.every", "100")
    return configs.parse(
        ["--config", str(SMOKE), "--run", str(run), "--data.shards", shards, *quiet, *args]
    )


@pytest.mark.parametrize("name", [name for name in recipes.TABLE if name != "f"])
def test_a_row_resumes_to_the_bit(shards, tmp_path, name):
    """Stopped after three steps, within the five of which the last one steps G in some rows; rates
    fall meanwhile."""
    falling = ("--optim.decay_begin", "2", "--optim.decay_end", "9")
    given = ("--recipe", name, "--steps", "6", *falling)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(options(whole, shards, *given)) == FINISHED
    for steps in ("3", "6"):
        assert train(options(broken, shards, *given, "--steps", steps)) == FINISHED
    assert_same_bits(str(broken), str(whole))
    translator = Translator.load(str(broken))
    x, y, z = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]), torch.randn(2, 16)
    assert translator.from_latents(x, y, z).isfinite().all()
    assert set(translator.networks) == set(recipes.TABLE[name].style.networks) | {"G"}


def test_rates_fall_as_the_configuration_says(shards):
    given = ("--optim.decay_begin", "10", "--optim.decay_end", "20", "--optim.lr", "0.5")
    training = TrainState(resolve(options("r", shards, *given)), domain_labels(["a", "b"]), CPU)
    rates = []
    for step in (0, 10, 15, 20, 30):
        training.set_learning_rates(step)
        rates.append(training.optimizers["G"].param_groups[0]["lr"])
    assert rates == [0.5, 0.5, 0.25, 0, 0]


def test_a_run_keeps_the_numbers_of_its_row(shards, tmp_path):
    """So a resume notices if the table has other numbers one day."""
    run = tmp_path / "run"
    train(options(run, shards, "--recipe", "a", "--steps", "1"))
    saved = checkpoints.find(str(run)).config
    assert saved["loss"] == {
        "reg": 10.0, "cls": 1.0, "sty": None, "cyc": 10.0, "ds": None, "ms": None,
        "ds_iter": 6,
    }  # fmt: skip
    assert (saved["optim"]["betas"], saved["optim"]["weight_decay"]) == ([0.5, 0.999], 1e-4)


def test_averages_move_in_iterations_of_d_alone_too(shards, tmp_path):
    """Else what they remember would depend on how often G steps: G steps in the fifth here."""
    run, given = tmp_path / "run", ("--recipe", "a", "--optim.ema", "0.5")
    train(options(run, shards, *given, "--steps", "4"))
    ema = checkpoints.find(str(run)).tensors("ema.safetensors")
    networks = checkpoints.find(str(run)).tensors("networks.safetensors")
    assert all(torch.equal(ema[name], networks[name]) for name in ema)  # as initialised
    train(options(run, shards, *given, "--steps", "6"))
    after = checkpoints.find(str(run))
    moved, average = (after.tensors(f"{n}.safetensors") for n in ("networks", "ema"))
    name = "G.from_rgb.weight"
    expected = 0.25 * networks[name] + 0.75 * moved[name]
    torch.testing.assert_close(average[name], expected)
