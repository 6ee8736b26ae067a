"""Both loss modules under a precision policy, and the parts of a run that stay float32."""

import pytest
import torch

from stargan_dist import config as configs
from stargan_dist.config import Config, ModelConfig
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.engines.ddp import DDP
from stargan_dist.inference.model import TrainedModel
from stargan_dist.nets.precision import POLICIES, compile_networks, set_precision
from stargan_dist.objectives import recipes
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipes import resolve
from stargan_dist.objectives.terms import LATENT, REFERENCE
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.training.train_state import TrainState
from tests.conftest import SMOKE
from tests.helpers.iterations import iterate
from tests.nets.test_precision import record_dtypes
from tests.objectives.test_objective import (
    make_batch,
    make_networks,
    make_objective,
    make_pairs,
)

CPU = torch.device("cpu")


def losses_and_gradients(policy):
    """Return the terms of both loss modules, and the gradients of each network by letter."""
    nets, batch = make_networks(), make_batch(0).to(CPU, torch.float32)
    for net in nets.values():
        net.float()
    set_precision(nets, policy)
    objective = make_objective(nets)
    translation = objective.generator.translate(batch, LATENT)
    d_loss, d_terms = objective.discriminator(batch, translation.fake)
    g_loss, g_terms = objective.generator(batch, (LATENT,), nets["D"], 0, [translation])
    (d_loss + g_loss).backward()
    gradients = {letter: [p.grad for p in net.parameters()] for letter, net in nets.items()}
    g_terms = {name.removeprefix("latent/"): term for name, term in g_terms.items()}
    return d_terms | g_terms, gradients


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def test_gradients_are_float32_and_close_to_those_of_the_float32_policy():
    expected = losses_and_gradients(POLICIES["float32"])[1]
    for letter, gradients in losses_and_gradients(POLICIES["bfloat16_most"])[1].items():
        assert {g.dtype for g in gradients} == {torch.float32}
        assert all(g.isfinite().all() for g in gradients)
        a, b = flat(expected[letter]), flat(gradients)
        assert torch.cosine_similarity(a, b, dim=0) > 0.97
        assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("letter", "rounded_terms"),
    [
        ("G", {"fake", "adv", "sty", "ds", "cyc"}),
        ("E", {"sty", "cyc"}),
        # Not real and reg: D's pass with R1 computes in the dtype of the weights.
        ("D", {"fake", "adv"}),
    ],
)
def test_a_network_rounds_the_terms_that_depend_on_it(letter, rounded_terms):
    float32 = POLICIES["float32"]
    expected = losses_and_gradients(float32)[0]
    terms = losses_and_gradients(float32._replace(**{letter: torch.bfloat16}))[0]
    changed = {name for name in expected if not torch.equal(expected[name], terms[name])}
    assert changed == rounded_terms
    assert {term.dtype for term in terms.values()} == {torch.float32}


@pytest.fixture
def trained_state(tmp_path):
    """The state of a run in bfloat16 after one iteration, which is also saved."""
    options = {
        "config": SMOKE, "run": tmp_path / "run", "data.shards": "none", "model.latent_dim": 5,
        "optim.ema": 0.5, "precision": "bfloat16_most",
    }  # fmt: skip
    config = configs.parse([f"--{name}={value}" for name, value in options.items()])
    state = TrainState(resolve(config), domain_labels(["a", "b", "c"]), CPU)
    engine = DDP(state.parts, config, World())
    batch = make_batch(0).to(CPU, state.dtype)
    iterate(state, engine, [batch], 0)
    snapshot = state.snapshot(engine, keep=True)
    metadata = {"config": configs.to_dict(state.config), "domains": ["a", "b", "c"], "data": ""}
    checkpoints.save(config.run, 1, snapshot, metadata)
    return state


def test_averages_compute_in_float32(trained_state):
    x, y = make_batch(1).to(CPU, torch.float32)[:2]
    expected_dtypes = (
        (trained_state.networks, torch.bfloat16),
        (trained_state.ema, torch.float32),
    )
    for networks, dtype in expected_dtypes:
        style, dtypes = record_dtypes(networks["E"], x, y)
        assert dtypes.convolutions == {dtype}
        assert record_dtypes(networks["G"], x, style)[1].convolutions == {dtype, torch.float32}


def test_weights_averages_and_moments_are_float32(trained_state):
    nets = [*trained_state.networks.values(), *trained_state.ema.values()]
    moments = [m for o in trained_state.optimizers.values() for m in o.state.values()]
    tensors = [p for net in nets for p in net.parameters()]
    tensors += [tensor for by_name in moments for tensor in by_name.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_a_run_in_bfloat16_is_translated_in_float32(trained_state):
    run = trained_state.config.run
    from_state = TrainedModel(trained_state.ema, trained_state.spec, trained_state.labels, 1)
    loaded, batch = TrainedModel.load(run), make_batch(2).to(CPU, torch.float32)
    expected = from_state.from_references(batch.x, batch.y_trg, batch.x_ref)
    assert torch.equal(loaded.from_references(batch.x, batch.y_trg, batch.x_ref), expected)
    _, dtypes = record_dtypes(loaded.from_latents, batch.x, batch.y_trg, batch.z)
    assert dtypes.convolutions == {torch.float32}


def summed_loss_and_gradients(nets, batch):
    """Return the sum of both modules' losses, R1 included, and all gradients."""
    objective = make_objective(nets)
    fake = objective.generator.translate(batch, LATENT).fake
    loss = objective.discriminator(batch, fake)[0]
    loss = loss + objective.generator(batch, (LATENT, REFERENCE), nets["D"], 0)[0]
    loss.backward()
    return [loss, *(p.grad for net in nets.values() for p in net.parameters())]


@pytest.mark.parametrize(
    "optimisation", [pytest.param("compile", marks=pytest.mark.slow), "channels_last"]
)
def test_compilation_and_channels_last_do_not_change_losses_and_gradients(optimisation):
    """In float64."""
    batch = make_batch(0)
    expected = summed_loss_and_gradients(make_networks(), batch)
    nets = make_networks()
    if optimisation == "compile":
        compile_networks(nets, backend="aot_eager")
    else:
        for net in nets.values():
            net.to(memory_format=torch.channels_last)
        assert not nets["G"].from_rgb.weight.is_contiguous()
    graphs_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    actual = summed_loss_and_gradients(nets, batch)
    for tensor, expected_tensor in zip(actual, expected, strict=True):
        torch.testing.assert_close(tensor, expected_tensor, rtol=1e-9, atol=1e-9)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs_before
    assert (graphs > 0) == (optimisation == "compile")


def losses_of_recipe(name, prepare, dtype):
    """Return the terms of D's loss; and the sum of both modules' losses with all gradients.

    Args:
        name: of the recipe.
        prepare: called with the networks.
        dtype: of weights and batch.
    """
    recipe = recipes.resolve(Config(recipe=name)).recipe
    labels = domain_labels(["a", "b"] if recipe.takes_pairs else ["a", "b", "c"])
    model, make = ModelConfig(32, 4, 8, 5, 6, 7), make_pairs if recipe.takes_pairs else make_batch
    torch.manual_seed(0)
    nets = recipe.build_networks(labels, model)
    for net in nets.values():
        net.to(dtype)
    prepare(nets)
    objective, batch = Objective(recipe, nets, labels), make(0).to(CPU, dtype)
    guide = recipe.guides[0]
    fake = objective.generator.translate(batch, guide).fake
    loss, terms = objective.discriminator(batch, fake)
    loss = loss + objective.generator(batch, (guide,), nets["D"], 0)[0]
    loss.backward()
    gradients = [p.grad for net in nets.values() for p in net.parameters() if p.grad is not None]
    return terms, [loss, *gradients]


@pytest.mark.parametrize("name", ["stargan", "a", "d"])
def test_other_recipes_compute_in_the_dtypes_of_the_policy(name):
    """Wasserstein losses with gradient penalty, concatenated labels, the encoder of latents."""
    policy = POLICIES["bfloat16_most"]
    expected_terms, _ = losses_of_recipe(name, lambda nets: None, torch.float32)
    terms, loss_and_gradients = losses_of_recipe(
        name, lambda nets: set_precision(nets, policy), torch.float32
    )
    assert {tensor.dtype for tensor in loss_and_gradients} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in loss_and_gradients)
    # Passes that a penalty differentiates compute in the dtype of the weights.
    assert torch.equal(terms["real"], expected_terms["real"])
    assert not torch.equal(terms["fake"], expected_terms["fake"])


@pytest.mark.parametrize("name", ["stargan", "a", "munit"])
def test_compilation_does_not_change_losses_and_gradients_of_other_recipes(name):
    _, expected = losses_of_recipe(name, lambda nets: None, torch.float64)
    _, compiled = losses_of_recipe(
        name, lambda nets: compile_networks(nets, "eager"), torch.float64
    )
    for tensor, expected_tensor in zip(compiled, expected, strict=True):
        torch.testing.assert_close(tensor, expected_tensor, rtol=1e-9, atol=1e-12)
