"""Runs of all recipes: resuming, learning rates, saved weights of terms, averages."""

from dataclasses import replace

import pytest
import torch

from stargan_dist import config as configs
from stargan_dist.data.labels import domain_labels
from stargan_dist.errors import UserError
from stargan_dist.inference.model import TrainedModel
from stargan_dist.objectives import recipes
from stargan_dist.objectives.recipes import resolve
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.training.train_state import TrainState
from stargan_dist.training.trainer import FINISHED, train
from tests.conftest import SMOKE
from tests.helpers.runs import assert_same_bits, scalars, tensors

CPU = torch.device("cpu")
OTHERS = [name for name in recipes.TABLE if name != "f"]  # many tests train f
# With G in every fifth iteration, with labels and latents, with two guides, with C.
QUICK = {"stargan", "d", "f_mode_seeking", "drit"}


def pair_of(name):
    """Return the options that name two domains for recipes that take pairs."""
    return ("--data.pair", "[dog, cat]") if recipes.TABLE[name].takes_pairs else ()


def decay_of(name):
    """Return the options of rates that change within six steps, in the recipe's own way."""
    if recipes.TABLE[name].optim.halve_every:
        return ("--optim.halve_every", "2")
    return ("--optim.decay_begin", "2", "--optim.decay_end", "9")


def make_config(run, shards, *options):
    """Return the smoke configuration, without sample grids and with one checkpoint at the end."""
    fewer_files = ("--monitor.sample_every", "0", "--checkpoint.every", "100")
    return configs.parse(
        ["--config", str(SMOKE), "--run", str(run), "--data.shards", shards, *fewer_files, *options]
    )


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS],
)
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(shards, tmp_path, name):
    """The run stops after three steps: before G steps, in recipes where it steps in every fifth
    iteration, and while learning rates decay."""
    options = ("--recipe", name, "--steps", "6", *decay_of(name), *pair_of(name))
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    assert train(make_config(uninterrupted, shards, *options)) == FINISHED
    for steps in ("3", "6"):
        assert train(make_config(resumed, shards, *options, "--steps", steps)) == FINISHED
    assert_same_bits(str(resumed), str(uninterrupted))
    translator = TrainedModel.load(str(resumed))
    x, y = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    z = torch.randn(2, recipes.TABLE[name].latent_dim)
    assert translator.from_latents(x, y, z).isfinite().all()
    assert set(translator.networks) == set(recipes.TABLE[name].style.networks) | {"G"}


def test_references_guide_a_model_that_was_trained_without_them(shards, tmp_path):
    """By the encoder of the target's domain: in grids, and afterwards."""
    options = ("--recipe", "munit", "--steps", "1", "--monitor.sample_every", "1")
    train(make_config(tmp_path, shards, *options, *pair_of("munit")))
    assert (tmp_path / "samples" / "reference_00000001.png").exists()
    model = TrainedModel.load(str(tmp_path))
    x, x_ref, y = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    styles = [model.networks["E"].of_domain[d](x_ref[[d]]) for d in (0, 1)]
    expected = model.from_latents(x, y, torch.cat(styles).detach())
    torch.testing.assert_close(model.from_references(x, y, x_ref), expected)
    assert (model.from_references(x, y, x_ref.flip(0)) - expected).abs().max() > 1e-6


def test_a_run_resumes_with_its_pool_of_fakes(shards, tmp_path, monkeypatch):
    """It stops in the fourth iteration, and the pools of two fakes are full after two."""
    small = replace(recipes.TABLE["cyclegan"], pool_size=2)
    monkeypatch.setitem(recipes.TABLE, "cyclegan", small)
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    options = ("--recipe", "cyclegan", *pair_of("cyclegan"))
    assert train(make_config(uninterrupted, shards, *options, "--steps", "7")) == FINISHED
    for steps in ("4", "7"):
        assert train(make_config(resumed, shards, *options, "--steps", steps)) == FINISHED
    assert_same_bits(resumed, uninterrupted)
    images = tensors(resumed)["pool/images"]
    assert images.shape == (4, 2, 3, 32, 32)
    assert images.flatten(2).any(2).all()


@pytest.mark.parametrize(
    ("schedule", "guides"),
    [("sparse", ["latent+reference", "latent+reference"]), ("fast", ["reference", "latent"])],
)
def test_a_run_stopped_between_two_lazy_steps_resumes_with_the_same_bits(
    schedule, guides, shards, tmp_path
):
    """R1 is computed in the 8th and 16th step."""
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    options = ("--schedule", schedule, "--monitor.log_every", "1")
    assert train(make_config(uninterrupted, shards, *options, "--steps", "16")) == FINISHED
    for steps in ("11", "16"):
        assert train(make_config(resumed, shards, *options, "--steps", steps)) == FINISHED
    assert_same_bits(str(resumed), str(uninterrupted))
    logged = scalars(resumed)
    for step, guide in zip((8, 16), guides, strict=True):
        assert step in [logged_step for logged_step, _ in logged[f"D/{guide}/reg"]]
    with_r1 = {step for guide in guides for step, _ in logged[f"D/{guide}/reg"]}
    assert with_r1 == {8, 16}


def test_learning_rates_decay_linearly_between_decay_begin_and_decay_end(shards):
    options = ("--optim.decay_begin", "10", "--optim.decay_end", "20", "--optim.lr", "0.5")
    spec = resolve(make_config("r", shards, *options))
    state = TrainState(spec, domain_labels(["a", "b"]), CPU)
    rates = []
    for step in (0, 10, 15, 20, 30):
        state.set_learning_rates(step)
        rates.append(state.optimizers["G"].param_groups[0]["lr"])
    assert rates == [0.5, 0.5, 0.25, 0, 0]


def test_learning_rates_are_halved_again_and_again(shards):
    options = ("--optim.halve_every", "10", "--optim.lr", "0.5", "--optim.lr_mapping", "0.25")
    state = TrainState(resolve(make_config("r", shards, *options)), domain_labels(["a", "b"]), CPU)
    rates = {letter: [] for letter in "GF"}
    for step in (0, 9, 10, 19, 20, 30):
        state.set_learning_rates(step)
        for letter, rates_of_letter in rates.items():
            rates_of_letter.append(state.optimizers[letter].param_groups[0]["lr"])
    assert rates["G"] == [0.5, 0.5, 0.25, 0.25, 0.125, 0.0625]
    assert rates["F"] == [rate / 2 for rate in rates["G"]]


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("f", ("--optim.halve_every", "-1"), "optim.halve_every: must not be negative"),
        ("munit", ("--optim.decay_end", "10"), "optim.halve_every: .* not both; set one .* to 0"),
        ("cyclegan", ("--optim.halve_every", "5"), "optim.halve_every: .* not both"),
    ],
)
def test_learning_rates_are_halved_or_decay_linearly(shards, tmp_path, recipe, options, message):
    """One of the two may be the recipe's own."""
    with pytest.raises(UserError, match=message):
        train(make_config(tmp_path, shards, "--recipe", recipe, *options, *pair_of(recipe)))


def test_a_checkpoint_holds_the_numbers_of_its_recipe(shards, tmp_path):
    """So a change of the table is noticed when the run is resumed."""
    run = tmp_path / "run"
    train(make_config(run, shards, "--recipe", "a", "--steps", "1"))
    saved = checkpoints.find(str(run)).manifest.config
    assert saved["loss"] == {
        "reg": 10.0, "cls": 1.0, "sty": None, "cyc": 10.0, "idt": None, "con": None, "ds": None,
        "ms": None, "dom": None, "kl": None, "l2": None, "ds_iter": 6,
    }  # fmt: skip
    assert (saved["optim"]["betas"], saved["optim"]["weight_decay"]) == ([0.5, 0.999], 1e-4)


def test_averages_move_in_iterations_of_d_alone_too(shards, tmp_path):
    """Otherwise their memory, counted in images, would depend on how often G steps. Here G steps in
    the fifth of six iterations."""
    run, options = tmp_path / "run", ("--recipe", "a", "--optim.ema", "0.5")
    train(make_config(run, shards, *options, "--steps", "4"))
    ema = checkpoints.find(str(run)).tensors("ema.safetensors")
    initial = checkpoints.find(str(run)).tensors("networks.safetensors")
    assert all(torch.equal(ema[name], initial[name]) for name in ema)  # G has not stepped yet
    train(make_config(run, shards, *options, "--steps", "6"))
    checkpoint = checkpoints.find(str(run))
    stepped, average = (checkpoint.tensors(f"{n}.safetensors") for n in ("networks", "ema"))
    name = "G.from_rgb.weight"
    expected = 0.25 * initial[name] + 0.75 * stepped[name]
    torch.testing.assert_close(average[name], expected)
