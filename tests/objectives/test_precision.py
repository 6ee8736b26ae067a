"""The losses of both sides under a policy, and the parts of a run that stay float32."""

import pytest
import torch

from stargan_dist import config as configs
from stargan_dist.config import ClipConfig, Config, ModelConfig
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.engines.ddp import DDP
from stargan_dist.inference.translator import Translator
from stargan_dist.nets.precision import POLICIES, compile_networks, set_precision
from stargan_dist.objectives import recipes
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipes import LATENT, REFERENCE, resolve
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.training.train_state import TrainState
from tests.conftest import SMOKE
from tests.helpers.iterations import iterate
from tests.nets.test_precision import noted
from tests.objectives.test_objective import make_batch, make_networks, objective_of

CPU = torch.device("cpu")


def losses_and_gradients(policy):
    """Terms of both sides, and for each network its gradients as one vector (a, b, c, …)."""
    nets, batch = make_networks(), make_batch(0).to(CPU, torch.float32)
    for net in nets.values():
        net.float()
    set_precision(nets, policy)
    objective = objective_of(nets)
    translation = objective.generator.translate(batch, LATENT)
    d_loss, d_terms = objective.discriminator(batch, translation.fake)
    g_loss, g_terms = objective.generator(batch, (LATENT,), nets["D"], 0, [translation])
    (d_loss + g_loss).backward()
    gradients = {letter: [p.grad for p in net.parameters()] for letter, net in nets.items()}
    g_terms = {name.removeprefix("latent/"): term for name, term in g_terms.items()}
    return d_terms | g_terms, gradients


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def test_gradients_are_float32_and_near_to_those_of_float32():
    exact = losses_and_gradients(POLICIES["float32"])[1]
    for letter, gradients in losses_and_gradients(POLICIES["bfloat16_most"])[1].items():
        assert {g.dtype for g in gradients} == {torch.float32}
        assert all(g.isfinite().all() for g in gradients)
        a, b = flat(exact[letter]), flat(gradients)
        assert torch.cosine_similarity(a, b, dim=0) > 0.97
        assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("part", "rounded"),
    [
        ("G", {"fake", "adv", "sty", "ds", "cyc"}),
        ("E", {"sty", "cyc"}),
        ("D", {"fake", "adv"}),  # not real and reg: R1 and the logits it is made from are exact
    ],
)
def test_a_part_rounds_the_terms_that_it_makes(part, rounded):
    float32 = POLICIES["float32"]
    exact = losses_and_gradients(float32)[0]
    near = losses_and_gradients(float32._replace(**{part: torch.bfloat16}))[0]
    assert {name for name in exact if not torch.equal(exact[name], near[name])} == rounded
    assert {term.dtype for term in near.values()} == {torch.float32}


@pytest.fixture
def training(tmp_path):
    """A run in bfloat16 after one iteration."""
    options = {
        "config": SMOKE, "run": tmp_path / "run", "data.shards": "none", "model.latent_dim": 5,
        "optim.ema": 0.5, "precision": "bfloat16_most",
    }  # fmt: skip
    config = configs.parse([f"--{name}={value}" for name, value in options.items()])
    training = TrainState(resolve(config), domain_labels(["a", "b", "c"]), CPU)
    engine = DDP(training.parts, ClipConfig(), {}, World())
    batch = make_batch(0).to(CPU, training.dtype)
    iterate(training, engine, [batch], 0)
    state = training.snapshot(engine, keep=True)
    facts = {"config": configs.to_dict(training.config), "domains": ["a", "b", "c"], "data": ""}
    checkpoints.save(config.run, 1, state, facts)
    return training


def test_averages_compute_in_float32(training):
    x, y = make_batch(1).to(CPU, torch.float32)[:2]
    for networks, dtype in ((training.networks, torch.bfloat16), (training.ema, torch.float32)):
        style, products = noted(networks["E"], x, y)
        assert products.convolutions == {dtype}
        assert noted(networks["G"], x, style)[1].convolutions == {dtype, torch.float32}


def test_what_is_kept_is_float32(training):
    nets = [*training.networks.values(), *training.ema.values()]
    states = [state for o in training.optimizers.values() for state in o.state.values()]
    kept = [p for net in nets for p in net.parameters()]
    kept += [moment for state in states for moment in state.values()]
    assert {tensor.dtype for tensor in kept} == {torch.float32}


def test_a_run_in_bfloat16_is_translated_in_float32(training):
    config = training.config
    live = Translator(training.ema, training.spec, training.labels, 1)
    loaded, batch = Translator.load(config.run), make_batch(2).to(CPU, torch.float32)
    expected = live.from_references(batch.x, batch.y_trg, batch.x_ref)
    assert torch.equal(loaded.from_references(batch.x, batch.y_trg, batch.x_ref), expected)
    assert noted(loaded.from_latents, batch.x, batch.y_trg, batch.z)[1].convolutions == {
        torch.float32
    }


def both_sides(nets, batch):
    """The losses of both sides, R1 among them, and every gradient."""
    objective = objective_of(nets)
    fake = objective.generator.translate(batch, LATENT)
    loss = objective.discriminator(batch, fake.fake)[0]
    loss = loss + objective.generator(batch, (LATENT, REFERENCE), nets["D"], 0)[0]
    loss.backward()
    return [loss, *(p.grad for net in nets.values() for p in net.parameters())]


@pytest.mark.parametrize("arrange", ["compile", "channels_last"])
def test_what_makes_it_faster_changes_nothing(arrange):
    """In float64: the compiled graphs and the other layout give the same losses and gradients."""
    batch = make_batch(0)
    expected = both_sides(make_networks(), batch)
    nets = make_networks()
    if arrange == "compile":
        compile_networks(nets, backend="aot_eager")
    else:
        for net in nets.values():
            net.to(memory_format=torch.channels_last)
        assert not nets["G"].from_rgb.weight.is_contiguous()
    graphs_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for ours, theirs in zip(both_sides(nets, batch), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs_before
    assert (graphs > 0) == (arrange == "compile")


def losses_of_row(name, arrange, dtype):
    """The losses of both sides of a row, and every gradient."""
    row = recipes.resolve(Config(recipe=name)).recipe
    labels, model = domain_labels(["a", "b", "c"]), ModelConfig(32, 4, 8, 5, 6, 7)
    torch.manual_seed(0)
    nets = row.build_networks(labels, model)
    for net in nets.values():
        net.to(dtype)
    arrange(nets)
    objective, batch = Objective(row, nets, labels), make_batch(0).to(CPU, dtype)
    guide = row.guides[0]
    fake = objective.generator.translate(batch, guide).fake
    loss, terms = objective.discriminator(batch, fake)
    loss = loss + objective.generator(batch, (guide,), nets["D"], 0)[0]
    loss.backward()
    gradients = [p.grad for net in nets.values() for p in net.parameters() if p.grad is not None]
    return terms, [loss, *gradients]


@pytest.mark.parametrize("name", ["stargan", "a", "d"])
def test_other_rows_compute_low_where_the_policy_says(name):
    """Wasserstein and its penalty, labels that are concatenated, the encoder of latents."""
    policy = POLICIES["bfloat16_most"]
    exact = losses_of_row(name, lambda nets: None, torch.float32)
    near = losses_of_row(name, lambda nets: set_precision(nets, policy), torch.float32)
    assert {g.dtype for g in near[1]} == {torch.float32}
    assert all(g.isfinite().all() for g in near[1])
    assert torch.equal(near[0]["real"], exact[0]["real"])  # what penalties differentiate is exact
    assert not torch.equal(near[0]["fake"], exact[0]["fake"])


@pytest.mark.parametrize("name", ["stargan", "a"])
def test_compiled_rows_are_the_same(name):
    plain = losses_of_row(name, lambda nets: None, torch.float64)[1]
    compiled = losses_of_row(name, lambda nets: compile_networks(nets, "eager"), torch.float64)[1]
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
