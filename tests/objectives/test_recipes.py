"""Every row of the table against the plainly written one, in float64."""

import copy
from dataclasses import replace

import pytest
import torch

from baselines.recipes import CRITIC_STEPS, RECIPES, literal_iteration
from stargan_dist.config import Config, LossConfig, ModelConfig, OptimConfig
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError
from stargan_dist.objectives import losses, recipes
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipe import Term
from stargan_dist.training.train_state import build_optimizers
from tests.objectives.test_objective import Undistributed, make_batch

MODEL = ModelConfig(
    image_size=32, base_width=4, max_width=8, style_dim=6, latent_dim=5, mapping_dim=7
)
LABELS = domain_labels(["a", "b", "c"])
DS_ITER = 8


def config_of(name, **loss):
    return Config(recipe=name, model=MODEL, loss=LossConfig(ds_iter=DS_ITER, **loss))


def make(name, labels=LABELS):
    """The objective of a row, its networks and optimizers."""
    row = recipes.resolve(config_of(name)).recipe
    torch.manual_seed(0)
    networks = row.build_networks(labels, MODEL)
    for network in networks.values():
        network.double()
    return Objective(row, networks, labels), networks, build_optimizers(networks, row.optim)


def weights(networks):
    return {
        f"{letter}.{name}": parameter.detach().clone()
        for letter, network in networks.items()
        for name, parameter in network.named_parameters()
    }


def moved(before, after):
    """The networks of which every weight tensor changed, or some."""
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    return {name[0] for name in changed}


def inputs(row, step):
    batch = make_batch(step)
    return batch if row.uses_references else batch._replace(x_ref=None, x_ref2=None)


def test_all_rows_are_looked_at():
    assert set(RECIPES) == recipes.TABLE.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_a_row_equals_the_literal_iteration(name):
    """Two iterations, the second of which is one of the generator side: terms and weights."""
    objective, networks, optimizers = make(name)
    plain = copy.deepcopy(networks)
    plain_optimizers = build_optimizers(plain, objective.recipe.optim)
    engine = Undistributed(objective, networks, optimizers)
    due = CRITIC_STEPS.get(name, 1) - 1
    for step in (due + 1, due + CRITIC_STEPS.get(name, 1)):
        before, batch = weights(networks), inputs(objective.recipe, step)
        terms = objective.iterate(engine, [batch], step)
        expected = literal_iteration(name, plain, plain_optimizers, make_batch(step), step, DS_ITER)
        assert terms.keys() == expected.keys()
        for term, value in terms.items():
            assert value.item() == pytest.approx(expected[term].item(), abs=1e-9), term
        both = weights(networks), weights(plain)
        assert max((both[0][n] - both[1][n]).abs().max().item() for n in both[0]) <= 1e-9
        all_step = objective.generator_steps(step)
        assert moved(before, both[0]) == (set(networks) if all_step else {"D"})
    assert all_step


@pytest.mark.parametrize("name", RECIPES)
def test_which_gradients_are_not_zero(name):
    """Of each phase: the networks that it steps have one, all of their weights but biases that an
    instance norm takes away; the others have none."""
    objective, networks, _ = make(name)
    batch, D = inputs(objective.recipe, 0), networks["D"]
    for guide in objective.recipe.guides:
        fake = objective.generator.translate(batch, guide).fake
        objective.discriminator(batch, fake)[0].backward()
        assert with_gradient(networks) == {"D"}
        objective.discriminator.zero_grad(set_to_none=True)
        objective.generator(batch, (guide,), D, 0)[0].backward()
        assert with_gradient(networks) == set(guide.trains) <= set(networks)
        for letter in guide.trains:
            for parameter_name, parameter in networks[letter].named_parameters():
                if parameter_name.endswith("weight"):
                    assert parameter.grad.abs().max() > 1e-12, f"{letter}.{parameter_name}"
        objective.generator.zero_grad(set_to_none=True)


def with_gradient(networks):
    return {
        letter
        for letter, network in networks.items()
        if any(p.grad is not None for p in network.parameters())
    }


def test_labels_of_several_sets_reach_g_and_d():
    """StarGAN on two sets: G is given c with its mask, D classifies what the batch's set knows."""
    labels = Labels(
        (
            LabelSpace("faces", ("blond", "male"), binary=True),
            LabelSpace("moods", ("glad", "sad", "calm")),
        )
    )
    objective, networks, _ = make("stargan", labels)
    c = torch.tensor([[0, 0, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0, 1]], dtype=torch.float64)
    batch = make_batch(0, 2)._replace(y=c, y_trg=c.flip(0), x_ref=None, x_ref2=None)
    (guide,) = objective.recipe.guides
    assert recipes.TABLE["stargan"].accepts_any_labels
    assert not recipes.TABLE["c"].accepts_any_labels
    code = objective.generator.conditioning.vector(
        objective.generator.style(batch, guide), batch.y_trg
    )
    assert torch.equal(code, batch.y_trg)
    assert networks["G"].body[0].in_channels == 3 + 7
    objective.discriminator(batch, batch.x)[0].backward()
    gradients = networks["D"].cls.weight.grad.flatten(1).abs().sum(1)
    assert gradients.shape == (5,)
    assert gradients[:2].tolist() == [0, 0]  # of the set that the batch is not from
    assert (gradients[2:] > 0).all()


def test_sets_are_trained_in_turn_and_g_steps_on_each():
    """Five steps of D on each of two sets, then G's on both."""
    two = Labels((LabelSpace("a", ("x", "y"), binary=True), LabelSpace("b", ("x", "y"))))
    steps = make("stargan", two)[0].generator_steps
    assert [step for step in range(22) if steps(step)] == [8, 9, 18, 19]
    steps = make("stargan")[0].generator_steps
    assert [step for step in range(11) if steps(step)] == [4, 9]


@pytest.mark.parametrize("name", ["stargan", "a", "b", "c", "c_acgan", "d"])
def test_latents_reach_g_where_the_row_says_so(name):
    objective, *_ = make(name)
    side, batch = objective.generator, inputs(objective.recipe, 0)
    (guide,) = objective.recipe.guides
    fake, other = (side.translate(b, guide).fake for b in (batch, batch._replace(z=batch.z2)))
    assert objective.recipe.is_diverse == (name == "d")
    assert torch.equal(fake, other) == (name != "d")


def test_a_row_of_ones_own_needs_no_other_change(monkeypatch):
    """Of data and one pure function: here colours that ought to stay."""

    def colour(fake, x):
        return (fake.mean((2, 3)) - x.mean((2, 3))).abs().mean()

    terms = (
        *recipes.F.generator_terms,
        Term("colour", lambda made: colour(made.fake, made.batch.x), 0.5),
    )
    monkeypatch.setitem(recipes.TABLE, "mine", replace(recipes.F, generator_terms=terms))
    objective, networks, optimizers = make("mine")
    told = objective.iterate(Undistributed(objective, networks, optimizers), [make_batch(0)], 0)
    assert {"G/latent/colour", "G/reference/colour"} <= told.keys()


def test_a_configuration_comes_before_the_row():
    row = recipes.resolve(config_of("a", cyc=3.0, cls=2.0)).recipe
    assert {t.name: t.weight for t in row.generator_terms} == {"adv": 1, "cls": 2, "cyc": 3}
    assert {t.name: t.weight for t in row.discriminator_terms}["cls"] == 2
    assert recipes.TABLE["a"].generator_terms[2].weight == 10
    optim = replace(config_of("stargan"), optim=OptimConfig(lr=3e-4))
    assert recipes.resolve(optim).recipe.optim.lr == 3e-4
    assert recipes.resolve(optim).recipe.optim.betas == (0.5, 0.999)


def test_a_resolved_configuration_says_all_numbers_and_stays_as_it_is():
    for name in RECIPES:
        once = recipes.resolve(config_of(name)).config
        assert recipes.resolve(once).config == once
        assert None not in vars(once.optim).values()
        assert (
            recipes.resolve(once).recipe.generator_terms
            == recipes.resolve(config_of(name)).recipe.generator_terms
        )
    assert recipes.resolve(Config(recipe="stargan")).config.model.max_width == 2048
    assert recipes.resolve(config_of("c")).config.loss == LossConfig(reg=1, cyc=1, ds_iter=DS_ITER)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            Config(recipe="g"),
            "recipe: g is not one of stargan, a, b, c, c_acgan, d, e, f, f_mode_seeking",
        ),
        (config_of("a", ds=1.0), "loss.ds: recipe a has no such term"),
        (config_of("f", cls=1.0), "loss.cls: recipe f has no such term"),
    ],
)
def test_what_no_row_has_is_refused(config, told):
    with pytest.raises(UserError, match=told):
        recipes.resolve(config)


def test_the_rows_are_those_of_the_papers():
    """What SPEC and papers say of v1 and v2, number by number."""
    v1, v2 = (
        recipes.resolve(Config(recipe="stargan")).recipe,
        recipes.resolve(Config(recipe="f")).recipe,
    )
    assert {t.name: t.weight for t in (*v1.discriminator_terms, *v1.generator_terms)} == {
        "real": 1, "fake": 1, "reg": 10, "cls": 1, "adv": 1, "cyc": 10,
    }  # fmt: skip
    assert (v1.discriminator_steps, v1.permute_labels, v1.uses_references, v1.crop_probability) == (
        5,
        True,
        False,
        0,
    )
    assert (v1.optim.lr, v1.optim.betas, v1.optim.weight_decay) == (1e-4, (0.5, 0.999), 0)
    assert (v1.optim.decay_begin, v1.optim.decay_end, v1.optim.ema) == (100_000, 200_000, 0)
    assert {t.name: t.weight for t in v2.generator_terms} == {"adv": 1, "sty": 1, "ds": 1, "cyc": 1}
    assert [guide.trains for guide in v2.guides] == [("G", "F", "E"), ("G",)]
    assert (v2.discriminator_steps, v2.permute_labels, v2.uses_references, v2.crop_probability) == (
        1,
        False,
        True,
        0.5,
    )


def test_mode_seeking_falls_as_images_move_apart():
    a, b, s, s2 = torch.zeros(2, 4), torch.ones(2, 4), torch.zeros(2, 3), torch.full((2, 3), 0.5)
    assert losses.mode_seeking(a, b, s, s2).item() == pytest.approx(0.5, rel=1e-4)
    assert losses.mode_seeking(a, 2 * b, s, s2).item() == pytest.approx(0.25, rel=1e-4)
    assert losses.mode_seeking(a, a, s, s).item() == 0  # two references may be the same image


def test_the_gradient_penalty_of_a_known_critic():
    """D(x) = 3 times the sum of a sample: its gradient's norm is 3 · sqrt(pixels) everywhere."""
    x, fake = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    mix = torch.rand(4, dtype=torch.float64)
    found = losses.gradient_penalty(lambda x: 3 * x.flatten(1), x, fake, mix)
    assert found.item() == pytest.approx((3 * 12**0.5 - 1) ** 2)
