"""Every recipe of the table against a literal implementation, in float64."""

import copy
from dataclasses import replace

import pytest
import torch

from baselines.recipes import CRITIC_STEPS, RECIPES, literal_iteration
from stargan_dist.config import Config, LossConfig, ModelConfig, OptimConfig
from stargan_dist.data.labels import Labels, LabelSpace, domain_labels
from stargan_dist.errors import UserError
from stargan_dist.nets.precision import POLICIES
from stargan_dist.objectives import losses, recipes
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipe import Term
from stargan_dist.training.train_state import build_optimizers
from tests.objectives.test_objective import SingleProcessEngine, make_batch, make_pairs

MODEL = ModelConfig(
    image_size=32, base_width=4, max_width=8, style_dim=6, latent_dim=5, mapping_dim=7
)
LABELS = domain_labels(["a", "b", "c"])
DS_ITER = 8


def make_config(name, **loss):
    """Return the configuration of a recipe. loss: weights of terms."""
    return Config(recipe=name, model=MODEL, loss=LossConfig(ds_iter=DS_ITER, **loss))


def labels_of(recipe):
    """Return the labels of the tests of a recipe."""
    return domain_labels(["a", "b"]) if recipe.takes_pairs else LABELS


def make_objective(name, labels=None):
    """Return the objective of a recipe, its networks and its optimizers."""
    recipe = recipes.resolve(make_config(name)).recipe
    labels = labels or labels_of(recipe)
    torch.manual_seed(0)
    networks = recipe.build_networks(labels, MODEL)
    for network in networks.values():
        network.double()
    return Objective(recipe, networks, labels), networks, build_optimizers(networks, recipe.optim)


def copy_parameters(networks):
    return {
        f"{letter}.{name}": parameter.detach().clone()
        for letter, network in networks.items()
        for name, parameter in network.named_parameters()
    }


def changed_networks(before, after):
    """Return the letters of the networks in which at least one parameter changed."""
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    return {name[0] for name in changed}


def make_recipe_batch(recipe, step):
    """Return the batch of a step, with references only if the recipe uses them."""
    batch = make_pairs(step) if recipe.takes_pairs else make_batch(step)
    return batch if recipe.uses_references else batch._replace(x_ref=None, x_ref2=None)


def test_every_recipe_has_a_literal_iteration():
    others = {"cyclegan", "munit", "drit", "msgan"}  # test_cyclegan.py, test_munit.py, test_drit.py
    assert {*RECIPES, *others} == recipes.TABLE.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_the_iteration_equals_the_literal_one(name):
    """Terms and parameters of two iterations. The second one has generator steps."""
    objective, networks, optimizers = make_objective(name)
    literal = copy.deepcopy(networks)
    literal_optimizers = build_optimizers(literal, objective.recipe.optim)
    engine = SingleProcessEngine(objective, optimizers)
    critic_steps = CRITIC_STEPS.get(name, 1)
    for step in (critic_steps, 2 * critic_steps - 1):
        before, batch = copy_parameters(networks), make_recipe_batch(objective.recipe, step)
        terms = objective.iterate(engine, [batch], step)
        expected = literal_iteration(
            name, literal, literal_optimizers, make_batch(step), step, DS_ITER
        )
        assert terms.keys() == expected.keys()
        for term, value in terms.items():
            assert value.item() == pytest.approx(expected[term].item(), abs=1e-9), term
        after, literal_after = copy_parameters(networks), copy_parameters(literal)
        assert max((after[n] - literal_after[n]).abs().max().item() for n in after) <= 1e-9
        has_generator_steps = objective.generator_steps(step)
        expected_changes = set(networks) if has_generator_steps else {"D"}
        assert changed_networks(before, after) == expected_changes
    assert has_generator_steps


@pytest.mark.parametrize("name", recipes.TABLE)
def test_each_phase_produces_gradients_only_for_the_networks_that_it_trains(name):
    """All weights of these networks have a nonzero gradient. Biases before an instance norm have
    none, and are not tested."""
    objective, networks, _ = make_objective(name)
    batch, D, C = make_recipe_batch(objective.recipe, 0), networks["D"], networks.get("C")
    fakes = fakes_of_phases(objective, batch)
    if C:
        contents = objective.generator.encode_sources(batch).bottleneck
        objective.content(batch, contents)[0].backward()
        assert networks_with_gradient(networks) == {"C"}
        objective.content.zero_grad(set_to_none=True)
    for guide in objective.recipe.guides:
        objective.discriminator(batch, fakes[guide])[0].backward()
        assert networks_with_gradient(networks) == {"D"}
        objective.discriminator.zero_grad(set_to_none=True)
        objective.generator(batch, (guide,), D, 0, C=C)[0].backward()
        assert networks_with_gradient(networks) == set(guide.trains) <= set(networks)
        for letter in guide.trains:
            for parameter_name, parameter in networks[letter].named_parameters():
                if parameter_name.endswith("weight"):
                    assert parameter.grad.abs().max() > 1e-12, f"{letter}.{parameter_name}"
        objective.generator.zero_grad(set_to_none=True)


def fakes_of_phases(objective, batch):
    """Return the fakes that D sees in the step after which the generator steps by a guide."""
    guides = objective.recipe.guides
    fakes = {
        guide: torch.cat(objective.generator.translate(batch, guide).fakes) for guide in guides
    }
    if objective.recipe.discriminator.by_guide:
        return dict.fromkeys(guides, torch.cat([*fakes.values()]))
    return fakes


def networks_with_gradient(networks):
    return {
        letter
        for letter, network in networks.items()
        if any(p.grad is not None for p in network.parameters())
    }


def test_label_vectors_of_several_sources_condition_g_and_train_d():
    """StarGAN on two data sources: the whole vector with its mask conditions G, and D classifies
    the labels of the batch's source alone."""
    labels = Labels(
        (
            LabelSpace("faces", ("blond", "male"), binary=True),
            LabelSpace("moods", ("glad", "sad", "calm")),
        )
    )
    objective, networks, _ = make_objective("stargan", labels)
    c = torch.tensor([[0, 0, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0, 1]], dtype=torch.float64)
    batch = make_batch(0, 2)._replace(y=c, y_trg=c.flip(0), x_ref=None, x_ref2=None)
    (guide,) = objective.recipe.guides
    assert recipes.TABLE["stargan"].accepts_any_labels
    assert not recipes.TABLE["c"].accepts_any_labels
    style = objective.generator.style(batch, guide)
    vector = objective.generator.conditioning.vector(style, batch.y_trg)
    assert torch.equal(vector, batch.y_trg)
    assert networks["G"].body[0].in_channels == 3 + 7
    objective.discriminator(batch, batch.x)[0].backward()
    gradients = networks["D"].cls.weight.grad.flatten(1).abs().sum(1)
    assert gradients.shape == (5,)
    assert gradients[:2].tolist() == [0, 0]  # labels of the other source
    assert (gradients[2:] > 0).all()


def test_steps_alternate_between_sources_and_g_steps_on_each():
    """Five steps of D on each of two sources; in the fifth on each, G steps too."""
    labels = Labels((LabelSpace("a", ("x", "y"), binary=True), LabelSpace("b", ("x", "y"))))
    has_generator_steps = make_objective("stargan", labels)[0].generator_steps
    assert [step for step in range(22) if has_generator_steps(step)] == [8, 9, 18, 19]
    has_generator_steps = make_objective("stargan")[0].generator_steps
    assert [step for step in range(11) if has_generator_steps(step)] == [4, 9]


@pytest.mark.parametrize("name", ["stargan", "a", "b", "c", "c_acgan", "d"])
def test_latents_change_the_output_of_g_in_diverse_recipes_alone(name):
    objective, *_ = make_objective(name)
    generator_loss, batch = objective.generator, make_recipe_batch(objective.recipe, 0)
    (guide,) = objective.recipe.guides
    fake = generator_loss.translate(batch, guide).fake
    fake_of_z2 = generator_loss.translate(batch._replace(z=batch.z2), guide).fake
    assert objective.recipe.is_diverse == (name == "d")
    assert torch.equal(fake, fake_of_z2) == (name != "d")


def test_a_custom_recipe_needs_no_change_elsewhere(monkeypatch):
    """It consists of data and one pure function, here a penalty on changed mean colours."""

    def colour(fake, x):
        return (fake.mean((2, 3)) - x.mean((2, 3))).abs().mean()

    terms = (
        *recipes.F.generator_terms,
        Term("colour", lambda g: colour(g.fake, g.batch.x), 0.5),
    )
    monkeypatch.setitem(recipes.TABLE, "custom", replace(recipes.F, generator_terms=terms))
    objective, _, optimizers = make_objective("custom")
    terms = objective.iterate(SingleProcessEngine(objective, optimizers), [make_batch(0)], 0)
    assert {"G/latent/colour", "G/reference/colour"} <= terms.keys()


def test_the_configuration_overrides_the_recipe():
    recipe = recipes.resolve(make_config("a", cyc=3.0, cls=2.0)).recipe
    assert {t.name: t.weight for t in recipe.generator_terms} == {"adv": 1, "cls": 2, "cyc": 3}
    assert {t.name: t.weight for t in recipe.discriminator_terms}["cls"] == 2
    assert recipes.TABLE["a"].generator_terms[2].weight == 10
    config = replace(make_config("stargan"), optim=OptimConfig(lr=3e-4))
    assert recipes.resolve(config).recipe.optim.lr == 3e-4
    assert recipes.resolve(config).recipe.optim.betas == (0.5, 0.999)


def test_a_resolved_configuration_has_all_numbers_and_resolves_to_itself():
    for name in recipes.TABLE:
        resolved = recipes.resolve(make_config(name)).config
        assert recipes.resolve(resolved).config == resolved
        assert None not in vars(resolved.optim).values()
        assert (
            recipes.resolve(resolved).recipe.generator_terms
            == recipes.resolve(make_config(name)).recipe.generator_terms
        )
    assert recipes.resolve(Config(recipe="stargan")).config.model.max_width == 2048
    expected = LossConfig(reg=1, cyc=1, ds_iter=DS_ITER)
    assert recipes.resolve(make_config("c")).config.loss == expected


@pytest.mark.parametrize("name", recipes.TABLE)
def test_a_run_spec_resolves_to_itself(name):
    spec = recipes.resolve(replace(make_config(name, cyc=2.5), precision="bfloat16"))
    assert isinstance(spec, recipes.RunSpec)
    assert spec.policy is POLICIES["bfloat16"]
    assert (spec.recipe.optim, spec.recipe.ds_iter) == (spec.config.optim, DS_ITER)
    configured = {name: w for name, w in vars(spec.config.loss).items() if w is not None}
    terms = (*spec.recipe.discriminator_terms, *spec.recipe.generator_terms)
    weights = {t.name: t.weight for t in terms if hasattr(spec.config.loss, t.name)}
    assert configured == weights | {"ds_iter": DS_ITER}
    assert configured["cyc"] == 2.5
    assert recipes.resolve(spec.config) == spec


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Config(recipe="g"),
            "recipe: g is not one of cyclegan, munit, drit, msgan, stargan, a, b, c, c_acgan, d, "
            "e, f, f_mode_seeking",
        ),
        (make_config("a", ds=1.0), "loss.ds: recipe a has no such term"),
        (make_config("f", cls=1.0), "loss.cls: recipe f has no such term"),
    ],
)
def test_unknown_recipes_and_weights_of_absent_terms_are_rejected(config, message):
    with pytest.raises(UserError, match=message):
        recipes.resolve(config)


def test_stargan_and_stargan_v2_have_the_numbers_of_the_papers():
    v1, v2 = (
        recipes.resolve(Config(recipe="stargan")).recipe,
        recipes.resolve(Config(recipe="f")).recipe,
    )
    assert {t.name: t.weight for t in (*v1.discriminator_terms, *v1.generator_terms)} == {
        "real": 1, "fake": 1, "reg": 10, "cls": 1, "adv": 1, "cyc": 10,
    }  # fmt: skip
    assert (v1.discriminator_steps, v1.targets, v1.uses_references) == (5, "permuted", False)
    assert (v1.crop.probability, v1.pool_size, v1.generator_first) == (0, 0, False)
    assert (v1.optim.lr, v1.optim.betas, v1.optim.weight_decay) == (1e-4, (0.5, 0.999), 0)
    assert (v1.optim.decay_begin, v1.optim.decay_end, v1.optim.ema) == (100_000, 200_000, 0)
    assert {t.name: t.weight for t in v2.generator_terms} == {"adv": 1, "sty": 1, "ds": 1, "cyc": 1}
    assert [guide.trains for guide in v2.guides] == [("G", "F", "E"), ("G",)]
    assert (v2.discriminator_steps, v2.targets, v2.uses_references) == (1, "drawn", True)
    assert v2.crop == (0.5, (0.8, 1.0), (0.9, 1.1))
    assert (v2.pool_size, v2.generator_first) == (0, False)


def test_the_mode_seeking_loss_falls_as_images_move_apart():
    a, b, s, s2 = torch.zeros(2, 4), torch.ones(2, 4), torch.zeros(2, 3), torch.full((2, 3), 0.5)
    assert losses.mode_seeking(a, b, s, s2).item() == pytest.approx(0.5, rel=1e-4)
    assert losses.mode_seeking(a, 2 * b, s, s2).item() == pytest.approx(0.25, rel=1e-4)
    assert losses.mode_seeking(a, a, s, s).item() == 0  # two references may be the same image


def test_the_gradient_penalty_of_a_linear_critic_has_a_closed_form():
    """D(x) is 3 times the sum of a sample, so the norm of its gradient is 3 · sqrt(12)."""
    x, fake = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    mix = torch.rand(4, dtype=torch.float64)
    penalty = losses.gradient_penalty(lambda x: 3 * x.flatten(1), x, fake, mix)
    assert penalty.item() == pytest.approx((3 * 12**0.5 - 1) ** 2)
