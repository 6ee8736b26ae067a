"""One table of the methods from CycleGAN, MUNIT and DRIT to StarGAN v2.

Papers: arXiv 1703.10593, 1804.04732, 1808.00948, 1903.05628, 1711.09020, 1912.01865; rows a to f
are table 1 of the last. A recipe is a row of data. A new row needs no change elsewhere; a new term
needs one pure function of tensors in losses.py. docs/recipes.md explains the table, equation by
equation.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stargan_dist.config import ClipConfig, Config, LossConfig, ModelConfig, OptimConfig
from stargan_dist.data.labels import Labels
from stargan_dist.data.stream import DRAWN, OTHER, PERMUTED
from stargan_dist.data.transforms import NO_CROP, RANDOM_CROP, Crop
from stargan_dist.errors import UserError
from stargan_dist.nets import cyclegan, drit, munit, v1, v2
from stargan_dist.nets.blocks import DiscriminatorOutput
from stargan_dist.nets.precision import POLICIES, Policy
from stargan_dist.objectives import losses
from stargan_dist.objectives.conditioning import GaussianStyle, LatentStyle, NoStyle, StyleCode
from stargan_dist.objectives.loss_modules import ContentPass, DiscriminatorPass, GeneratorPass
from stargan_dist.objectives.recipe import DiscriminatorForm, Guide, Recipe, Term

# Generators, given the length of their conditioning vector.


def _sizes(model: ModelConfig) -> dict[str, int]:
    return {
        "image_size": model.image_size,
        "base_width": model.base_width,
        "max_width": model.max_width,
    }


def adain_generator(dim: int, model: ModelConfig) -> nn.Module:
    return v2.Generator(style_dim=dim, w_hpf=model.w_hpf, **_sizes(model))


def concat_generator(dim: int, model: ModelConfig) -> nn.Module:
    return v2.ConcatGenerator(dim, **_sizes(model))


def stargan_generator(dim: int, model: ModelConfig) -> nn.Module:
    return v1.Generator(dim, model.base_width)


def cyclegan_generator(num_domains: int, model: ModelConfig) -> nn.Module:
    return cyclegan.Generator(num_domains, model.image_size, model.base_width)


def munit_generator(dim: int, model: ModelConfig) -> nn.Module:
    return munit.Generator(dim - model.latent_dim, model.latent_dim, model.base_width)


def drit_generator(dim: int, model: ModelConfig) -> nn.Module:
    return drit.Generator(dim - model.latent_dim, model.latent_dim, model.base_width)


# Networks that produce or predict a style, given the number of labels.


def mapping_network(num_domains: int, model: ModelConfig) -> nn.Module:
    return v2.MappingNetwork(
        num_domains, model.latent_dim, model.style_dim, model.mapping_dim, model.mapping
    )


def style_encoder(num_domains: int, model: ModelConfig) -> nn.Module:
    return v2.StyleEncoder(num_domains, style_dim=model.style_dim, **_sizes(model))


def latent_encoder(_num_domains: int, model: ModelConfig) -> nn.Module:
    return v2.LatentEncoder(style_dim=model.latent_dim, **_sizes(model))


def munit_style_encoder(num_domains: int, model: ModelConfig) -> nn.Module:
    return munit.StyleEncoder(num_domains, model.latent_dim, model.base_width)


def attribute_encoder(num_domains: int, model: ModelConfig) -> nn.Module:
    return drit.AttributeEncoder(num_domains, model.latent_dim, model.base_width)


NO_STYLE = NoStyle()
LATENT_STYLE = LatentStyle({"E": latent_encoder})
MUNIT_STYLE = LatentStyle({"E": munit_style_encoder})
STYLE_CODE = StyleCode({"F": mapping_network, "E": style_encoder})
ATTRIBUTE = GaussianStyle({"E": attribute_encoder})

# Discriminators, given the number of labels.


def multi_task_discriminator(num_labels: int, model: ModelConfig) -> nn.Module:
    return v2.Discriminator(num_labels, **_sizes(model))


def classifying_discriminator(num_labels: int, model: ModelConfig) -> nn.Module:
    return v2.ClassifyingDiscriminator(num_labels, **_sizes(model))


def stargan_discriminator(num_labels: int, model: ModelConfig) -> nn.Module:
    return v1.Discriminator(num_labels, **_sizes(model))


def cyclegan_discriminator(num_domains: int, model: ModelConfig) -> nn.Module:
    return cyclegan.Discriminator(num_domains, model.base_width, model.max_width)


def munit_discriminator(num_domains: int, model: ModelConfig) -> nn.Module:
    return munit.Discriminator(num_domains, **_sizes(model))


def drit_discriminator(num_domains: int, model: ModelConfig) -> nn.Module:
    guides = len((BY_PARTNER, BY_ATTRIBUTE))
    return drit.Discriminator(num_domains, guides, **_sizes(model))


def content_discriminator(_num_domains: int, model: ModelConfig) -> nn.Module:
    return drit.ContentDiscriminator(model.image_size, model.base_width)


MULTI_TASK = DiscriminatorForm(multi_task_discriminator, by_domain=True)
ACGAN = DiscriminatorForm(classifying_discriminator, by_domain=False)
STARGAN = DiscriminatorForm(stargan_discriminator, by_domain=False)
CYCLEGAN_PATCHES = DiscriminatorForm(cyclegan_discriminator, by_domain=True)
MUNIT_SCALES = DiscriminatorForm(munit_discriminator, by_domain=True)
DRIT_PATCHES = DiscriminatorForm(drit_discriminator, by_domain=True, by_guide=True)

# Guides.

BY_LABEL = Guide("label", ("G",))
BY_LATENT = Guide("latent", ("G", "E"))
LATENT = Guide("latent", ("G", "F", "E"))
REFERENCE = Guide("reference", ("G",), ("x_ref", "x_ref2"), reference=True)
BY_PARTNER = Guide("reference", ("G", "E"), partner=True)
BY_ATTRIBUTE = Guide("latent", ("G",))
BY_TWO_ATTRIBUTES = BY_ATTRIBUTE._replace(fakes=2)

# Terms of D's loss: functions of a DiscriminatorPass d.


def over_scales(loss: Callable[[Tensor], Tensor], output: DiscriminatorOutput) -> Tensor:
    """Return the sum of a loss over the resolutions at which D sees an image."""
    return torch.stack([loss(scores) for scores in output.scales]).sum()


def classification_of_real(d: DiscriminatorPass) -> Tensor:
    assert d.real.cls is not None
    return d.labels.classification_loss(d.real.cls, d.batch.y)


def wasserstein(penalty_weight: float) -> tuple[Term, ...]:
    """Wasserstein loss with gradient penalty."""
    return (
        Term("real", lambda d: losses.wasserstein_real(d.real.src)),
        Term("fake", lambda d: losses.wasserstein_fake(d.fake.src)),
        Term("reg", lambda d: losses.gradient_penalty(d.score, d.real_images, d.fake_images,
                                                      d.batch.mix), penalty_weight, penalises=True),
    )  # fmt: skip


# R1 before the fakes: the order decides the last bits of D's gradient.
LOGISTIC = (
    Term("real", lambda d: losses.logistic_real(d.real.src)),
    Term("reg", lambda d: losses.r1(d.real.src, d.real_images), penalises=True),
    Term("fake", lambda d: losses.logistic_fake(d.fake.src)),
)
LOGISTIC_SCALES = (
    Term("real", lambda d: over_scales(losses.logistic_real, d.real)),
    Term("fake", lambda d: over_scales(losses.logistic_fake, d.fake)),
)
LEAST_SQUARES = (
    Term("real", lambda d: over_scales(losses.least_squares_real, d.real)),
    Term("fake", lambda d: over_scales(losses.least_squares_fake, d.fake)),
)
# As in CycleGAN's paper, so that D learns at half the rate of G.
HALF_LEAST_SQUARES = tuple(term._replace(weight=0.5) for term in LEAST_SQUARES)
CLASSIFY_REAL = Term("cls", classification_of_real)


# Terms of C's loss: functions of a ContentPass c.


def domain_of_content(c: ContentPass) -> Tensor:
    return losses.logistic_domains(c.logits, c.batch.y)


# Terms of the generator loss: functions of a GeneratorPass g.


def classification_of_fake(g: GeneratorPass) -> Tensor:
    assert g.output.cls is not None
    return g.labels.classification_loss(g.output.cls, g.batch.y_trg)


ADVERSARIAL_WASSERSTEIN = Term("adv", lambda g: losses.wasserstein_real(g.output.src))
ADVERSARIAL = Term("adv", lambda g: losses.logistic_real(g.output.src))
ADVERSARIAL_LEAST_SQUARES = Term("adv", lambda g: over_scales(losses.least_squares_real, g.output))
CLASSIFY_FAKE = Term("cls", classification_of_fake)
STYLE = Term("sty", lambda g: losses.l1(g.style_pred, g.style))
DIVERSITY = Term("ds", lambda g: losses.l1(g.fake, g.fake2), maximised=True, decays=True)
MODE_SEEKING = Term(
    "ms", lambda g: losses.mode_seeking(g.fake, g.fake2, g.style.detach(), g.style2)
)
CYCLE = Term("cyc", lambda g: losses.l1(g.reconstruction, g.batch.x))
CYCLE_10 = CYCLE._replace(weight=10.0)
CYCLE_IF_ASKED = CYCLE._replace(weight=0.0, optional=True)
CONTENT = Term("con", lambda g: losses.l1(g.encoded_fake.bottleneck, g.encoded.bottleneck))
IDENTITY = Term("idt", lambda g: losses.l1(g.identity, g.batch.x))
IDENTITY_5 = IDENTITY._replace(weight=5.0)
IDENTITY_10 = IDENTITY._replace(weight=10.0)


def adversarial_over_scales_and_fakes(g: GeneratorPass) -> Tensor:
    """Return the sum over the fakes that train G."""
    return torch.stack([over_scales(losses.logistic_real, out) for out in g.outputs]).sum()


# DRIT's, with the guide that has them.
_BY = BY_PARTNER.name
DRIT_TERMS = (
    Term("dom", lambda g: losses.logistic_undecided(g.content_logits), guide=_BY),
    Term("adv", adversarial_over_scales_and_fakes),
    Term("kl", lambda g: losses.kl_from_normal(*g.source_styles), 0.01, guide=_BY),
    Term("l2", lambda g: losses.mean_square(g.encoded.bottleneck), 0.01, guide=_BY),
    IDENTITY_10._replace(guide=_BY),
    Term("cyc", lambda g: losses.l1(g.cross_reconstruction, g.batch.x), 10.0, guide=_BY),
    STYLE._replace(weight=10.0, guide=BY_ATTRIBUTE.name),
)

# Optimizers.

ADAM_V1 = OptimConfig(
    lr=1e-4, lr_mapping=1e-4, lr_content=1e-4, betas=(0.5, 0.999), weight_decay=0.0, ema=0.0,
    decay_begin=100_000, decay_end=200_000, halve_every=0,
)  # fmt: skip
ADAM_V2 = OptimConfig(
    lr=1e-4, lr_mapping=1e-6, lr_content=1e-4, betas=(0.0, 0.99), weight_decay=1e-4, ema=0.999,
    decay_begin=0, decay_end=0, halve_every=0,
)  # fmt: skip
ADAM_CYCLEGAN = replace(ADAM_V1, lr=2e-4, lr_mapping=2e-4, lr_content=2e-4)
# The published L2 penalty, 1e-4, belongs to the sum over both directions. Our loss is their mean.
ADAM_MUNIT = replace(
    ADAM_V1, weight_decay=1e-4 / 2, decay_begin=0, decay_end=0, halve_every=100_000
)
# The published decay is 1e-4, and C's largest gradient 5, of losses that are sums over the two
# directions. Here they are means, half as large. In every third iteration G steps.
ADAM_DRIT = replace(
    ADAM_V1, lr_content=4e-5, weight_decay=1e-4 / 2, decay_begin=375_000, decay_end=750_000,
    clip=ClipConfig(C=2.5),
)  # fmt: skip

# Of each training image; as resizing to 286 px and cropping 256 px.
RESIZE_286_CROP_256 = Crop(1.0, area=((256 / 286) ** 2, (256 / 286) ** 2), ratio=(1.0, 1.0))

# As resizing to 256 px and cropping 216 px.
RESIZE_256_CROP_216 = Crop(1.0, area=((216 / 256) ** 2, (216 / 256) ** 2), ratio=(1.0, 1.0))

# The table. Rows a to f use the network bodies of StarGAN v2, so that each differs from the one
# before it by what its description says alone.

STARGAN_PUBLISHED = Recipe(
    description="StarGAN as published",
    generator=stargan_generator,
    discriminator=STARGAN,
    with_label=True,
    style=NO_STYLE,
    discriminator_terms=(*wasserstein(10.0), CLASSIFY_REAL),
    generator_terms=(ADVERSARIAL_WASSERSTEIN, CLASSIFY_FAKE, CYCLE_10),
    guides=(BY_LABEL,),
    optim=ADAM_V1,
    discriminator_steps=5,
    crop=NO_CROP,
    targets=PERMUTED,
    max_width=v1.MAX_WIDTH,
)
A = replace(
    STARGAN_PUBLISHED,
    description="StarGAN with the network bodies of StarGAN v2",
    generator=concat_generator,
    discriminator=ACGAN,
    crop=RANDOM_CROP,
    optim=replace(ADAM_V2, betas=(0.5, 0.999)),
    max_width=512,
)
B = replace(
    A,
    description="A with a multi-task discriminator",
    discriminator=MULTI_TASK,
    discriminator_terms=wasserstein(10.0),
    generator_terms=(ADVERSARIAL_WASSERSTEIN, CYCLE_10),
)
C = replace(
    B,
    description="B with R1 and the logistic loss, and AdaIN instead of concatenation",
    generator=adain_generator,
    outlines=True,
    discriminator_terms=LOGISTIC,
    generator_terms=(ADVERSARIAL, CYCLE),
    discriminator_steps=1,
    targets=DRAWN,
    optim=ADAM_V2,
)
C_ACGAN = replace(
    C,
    description="C with A's discriminator: the tuned recipe for labels of any kind",
    discriminator=ACGAN,
    discriminator_terms=(*LOGISTIC, CLASSIFY_REAL),
    generator_terms=(ADVERSARIAL, CLASSIFY_FAKE, CYCLE),
    targets=PERMUTED,
)
D = replace(
    C,
    description="C with a latent injected into G",
    style=LATENT_STYLE,
    generator_terms=(ADVERSARIAL, STYLE, CYCLE),
    guides=(BY_LATENT,),
)
E = replace(
    D,
    description="C with style codes of the domains (F and E) in place of label and latent",
    with_label=False,
    style=STYLE_CODE,
    guides=(LATENT, REFERENCE),
)
F = replace(
    E,
    description="E with diversity regularisation: StarGAN v2",
    generator_terms=(ADVERSARIAL, STYLE, DIVERSITY, CYCLE),
)
F_MODE_SEEKING = replace(
    F,
    description="F with MSGAN's ratio in place of the diversity term",
    generator_terms=(ADVERSARIAL, STYLE, MODE_SEEKING, CYCLE),
)
CYCLEGAN = Recipe(
    description="CycleGAN as published, between two domains",
    generator=cyclegan_generator,
    discriminator=CYCLEGAN_PATCHES,
    with_label=True,
    style=NO_STYLE,
    discriminator_terms=HALF_LEAST_SQUARES,
    generator_terms=(ADVERSARIAL_LEAST_SQUARES, CYCLE_10, IDENTITY_5),
    guides=(BY_LABEL,),
    optim=ADAM_CYCLEGAN,
    generator_first=True,
    pool_size=50,
    crop=RESIZE_286_CROP_256,
    targets=OTHER,
    max_width=cyclegan.MAX_WIDTH,
)
MUNIT = Recipe(
    description="MUNIT as published, between two domains",
    generator=munit_generator,
    discriminator=MUNIT_SCALES,
    with_label=True,
    style=MUNIT_STYLE,
    discriminator_terms=LEAST_SQUARES,
    generator_terms=(ADVERSARIAL_LEAST_SQUARES, IDENTITY_10, STYLE, CONTENT, CYCLE_IF_ASKED),
    guides=(BY_LATENT,),
    optim=ADAM_MUNIT,
    crop=NO_CROP,
    targets=OTHER,
    max_width=munit.MAX_WIDTH,
    latent_dim=8,
    references_guide=True,
)
DRIT = Recipe(
    description="DRIT as published, between two domains",
    generator=drit_generator,
    discriminator=DRIT_PATCHES,
    with_label=True,
    style=ATTRIBUTE,
    discriminator_terms=LOGISTIC_SCALES,
    generator_terms=DRIT_TERMS,
    guides=(BY_PARTNER, BY_ATTRIBUTE),
    optim=ADAM_DRIT,
    content_discriminator=content_discriminator,
    content_terms=(Term("dom", domain_of_content),),
    content_noise=1.0,
    discriminator_steps=3,
    every_iteration=("C",),
    crop=RESIZE_256_CROP_216,
    targets=OTHER,
    max_width=drit.MAX_WIDTH,
    latent_dim=8,
)
MSGAN = replace(
    DRIT,
    description="DRIT with mode seeking: MSGAN",
    generator_terms=(*DRIT_TERMS, MODE_SEEKING._replace(guide=BY_ATTRIBUTE.name)),
    guides=(BY_PARTNER, BY_TWO_ATTRIBUTES),
)

TABLE = {
    "cyclegan": CYCLEGAN,
    "munit": MUNIT,
    "drit": DRIT,
    "msgan": MSGAN,
    "stargan": STARGAN_PUBLISHED,
    "a": A,
    "b": B,
    "c": C,
    "c_acgan": C_ACGAN,
    "d": D,
    "e": E,
    "f": F,
    "f_mode_seeking": F_MODE_SEEKING,
}


@dataclass(frozen=True)
class RunSpec:
    """Everything that a configuration decides. Built once, by `resolve`, and passed on.

    Attributes:
        config: the configuration, with the recipe's numbers in place of nulls.
        recipe: the recipe, with the configuration's weights and rates.
        policy: the precision policy.
    """

    config: Config
    recipe: Recipe
    policy: Policy


def resolve(config: Config) -> RunSpec:
    """Resolve a configuration. A resolved configuration resolves to itself.

    Raises:
        UserError: the recipe does not exist, lacks a term that has a weight, or does not accept
            the labels of the data.
    """
    recipe = _recipe_of(config)
    weights = {term.name: term.weight for term in recipe.terms}
    loss = {field.name: weights.get(field.name) for field in dataclasses.fields(LossConfig)}
    resolved = replace(
        config,
        loss=LossConfig(**loss | {"ds_iter": recipe.ds_iter}),
        optim=recipe.optim,
        model=recipe.with_sizes(config.model),
    )
    return RunSpec(resolved, recipe, POLICIES[config.precision])


def check_labels(spec: RunSpec, labels: Labels) -> None:
    """Check that a recipe can be trained on the labels of the data.

    Raises:
        UserError: it translates between two domains, and there are others.
    """
    names = labels.names
    if spec.recipe.takes_pairs and len(names) > 2:
        raise UserError(
            f"recipe: {spec.config.recipe} translates between two domains, and the shards have "
            f"{len(names)}: name two of {', '.join(names)} (--data.pair '[{names[0]}, {names[1]}]')"
        )


def _recipe_of(config: Config) -> Recipe:
    """Return the recipe of a configuration, with the configuration's weights and rates."""
    if config.recipe not in TABLE:
        raise UserError(f"recipe: {config.recipe} is not one of {', '.join(TABLE)}")
    recipe = TABLE[config.recipe]
    if not (recipe.accepts_any_labels or config.data.by_domain):
        raise UserError(
            f"recipe: {config.recipe} translates between the domains of a single dataset, and "
            "data.sources has other labels: name the shards as data.shards, or use --recipe with "
            f"one of {', '.join(name for name in TABLE if TABLE[name].accepts_any_labels)}"
        )
    if config.model.w_hpf and not recipe.outlines:
        raise UserError(
            f"model.w_hpf: G of recipe {config.recipe} has no high-pass option; leave it at 0, or "
            f"use --recipe with one of {', '.join(n for n in TABLE if TABLE[n].outlines)}"
        )
    clip = replace(recipe.optim.clip, **_non_null_fields(config.optim.clip))
    if not recipe.content_discriminator:  # a launcher may set one maximum for all networks
        clip = replace(clip, C=None)
    weights = _non_null_fields(config.loss)
    ds_iter = weights.pop("ds_iter")
    for name in weights.keys() - {term.name for term in recipe.terms}:
        raise UserError(f"loss.{name}: recipe {config.recipe} has no such term; leave it at null")
    return replace(
        recipe,
        discriminator_terms=_with_weights(recipe.discriminator_terms, weights),
        content_terms=_with_weights(recipe.content_terms, weights),
        generator_terms=_with_weights(recipe.generator_terms, weights),
        ds_iter=ds_iter,
        optim=replace(recipe.optim, **_non_null_fields(config.optim) | {"clip": clip}),
    )


def _non_null_fields(section: LossConfig | OptimConfig | ClipConfig) -> dict[str, Any]:
    fields = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    return {name: value for name, value in fields.items() if value is not None}


def _with_weights(terms: tuple[Term, ...], weights: dict[str, float]) -> tuple[Term, ...]:
    return tuple(term._replace(weight=weights.get(term.name, term.weight)) for term in terms)
