"""One table of the methods from CycleGAN, MUNIT and DRIT to StarGAN v2.

Papers: arXiv 1703.10593, 1804.04732, 1808.00948, 1903.05628, 1711.09020, 1912.01865; rows a to f
are table 1 of the last. A recipe is a row of data: networks (builders.py), guides and terms
(terms.py), an optimizer. A new row needs no change elsewhere; a new term needs one pure function of
tensors in losses.py. docs/recipes.md and docs/pairs.md explain the table, equation by equation.
"""

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

from stargan_dist.config import ClipConfig, Config, LossConfig, OptimConfig
from stargan_dist.data.labels import Labels
from stargan_dist.data.stream import DRAWN, OTHER, PERMUTED
from stargan_dist.data.transforms import NO_CROP, RANDOM_CROP, Crop
from stargan_dist.errors import UserError
from stargan_dist.nets import cyclegan, drit, munit, v1
from stargan_dist.nets.precision import POLICIES, Policy
from stargan_dist.objectives import builders, terms
from stargan_dist.objectives.recipe import Recipe, Term
from stargan_dist.objectives.schedules import SCHEDULES

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
    generator=builders.stargan_generator,
    discriminator=builders.STARGAN,
    with_label=True,
    style=builders.NO_STYLE,
    discriminator_terms=(*terms.wasserstein(10.0), terms.CLASSIFY_REAL),
    generator_terms=(terms.ADVERSARIAL_WASSERSTEIN, terms.CLASSIFY_FAKE, terms.CYCLE_10),
    guides=(terms.BY_LABEL,),
    optim=ADAM_V1,
    discriminator_steps=5,
    crop=NO_CROP,
    targets=PERMUTED,
    max_width=v1.MAX_WIDTH,
)
A = replace(
    STARGAN_PUBLISHED,
    description="StarGAN with the network bodies of StarGAN v2",
    generator=builders.concat_generator,
    discriminator=builders.ACGAN,
    crop=RANDOM_CROP,
    optim=replace(ADAM_V2, betas=(0.5, 0.999)),
    max_width=512,
)
B = replace(
    A,
    description="A with a multi-task discriminator",
    discriminator=builders.MULTI_TASK,
    discriminator_terms=terms.wasserstein(10.0),
    generator_terms=(terms.ADVERSARIAL_WASSERSTEIN, terms.CYCLE_10),
)
C = replace(
    B,
    description="B with R1 and the logistic loss, and AdaIN instead of concatenation",
    generator=builders.adain_generator,
    outlines=True,
    discriminator_terms=terms.LOGISTIC,
    generator_terms=(terms.ADVERSARIAL, terms.CYCLE),
    discriminator_steps=1,
    targets=DRAWN,
    optim=ADAM_V2,
)
C_ACGAN = replace(
    C,
    description="C with A's discriminator: the tuned recipe for labels of any kind",
    discriminator=builders.ACGAN,
    discriminator_terms=(*terms.LOGISTIC, terms.CLASSIFY_REAL),
    generator_terms=(terms.ADVERSARIAL, terms.CLASSIFY_FAKE, terms.CYCLE),
    targets=PERMUTED,
)
D = replace(
    C,
    description="C with a latent injected into G",
    style=builders.LATENT_STYLE,
    generator_terms=(terms.ADVERSARIAL, terms.STYLE, terms.CYCLE),
    guides=(terms.BY_LATENT,),
)
E = replace(
    D,
    description="C with style codes of the domains (F and E) in place of label and latent",
    with_label=False,
    style=builders.STYLE_CODE,
    guides=(terms.LATENT, terms.REFERENCE),
)
F = replace(
    E,
    description="E with diversity regularisation: StarGAN v2",
    generator_terms=(terms.ADVERSARIAL, terms.STYLE, terms.DIVERSITY, terms.CYCLE),
)
F_MODE_SEEKING = replace(
    F,
    description="F with MSGAN's ratio in place of the diversity term",
    generator_terms=(terms.ADVERSARIAL, terms.STYLE, terms.MODE_SEEKING, terms.CYCLE),
)
CYCLEGAN = Recipe(
    description="CycleGAN as published, between two domains",
    generator=builders.cyclegan_generator,
    discriminator=builders.CYCLEGAN_PATCHES,
    with_label=True,
    style=builders.NO_STYLE,
    discriminator_terms=terms.HALF_LEAST_SQUARES,
    generator_terms=(terms.ADVERSARIAL_LEAST_SQUARES, terms.CYCLE_10, terms.IDENTITY_5),
    guides=(terms.BY_LABEL,),
    optim=ADAM_CYCLEGAN,
    generator_first=True,
    pool_size=50,
    crop=RESIZE_286_CROP_256,
    targets=OTHER,
    max_width=cyclegan.MAX_WIDTH,
)
MUNIT = Recipe(
    description="MUNIT as published, between two domains",
    generator=builders.munit_generator,
    discriminator=builders.MUNIT_SCALES,
    with_label=True,
    style=builders.MUNIT_STYLE,
    discriminator_terms=terms.LEAST_SQUARES,
    generator_terms=(
        terms.ADVERSARIAL_LEAST_SQUARES,
        terms.IDENTITY_10,
        terms.STYLE,
        terms.CONTENT,
        terms.CYCLE_IF_ASKED,
    ),
    guides=(terms.BY_LATENT,),
    optim=ADAM_MUNIT,
    crop=NO_CROP,
    targets=OTHER,
    max_width=munit.MAX_WIDTH,
    latent_dim=8,
    references_guide=True,
)
DRIT = Recipe(
    description="DRIT as published, between two domains",
    generator=builders.drit_generator,
    discriminator=builders.DRIT_PATCHES,
    with_label=True,
    style=builders.ATTRIBUTE,
    discriminator_terms=terms.LOGISTIC_SCALES,
    generator_terms=terms.DRIT_TERMS,
    guides=(terms.BY_PARTNER, terms.BY_ATTRIBUTE),
    optim=ADAM_DRIT,
    content_discriminator=builders.content_discriminator,
    content_terms=(terms.CONTENT_DOMAIN,),
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
    generator_terms=(*terms.DRIT_TERMS, terms.MODE_SEEKING._replace(guide=terms.BY_ATTRIBUTE.name)),
    guides=(terms.BY_PARTNER, terms.BY_TWO_ATTRIBUTES),
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
    if SCHEDULES[config.schedule].alternating and recipe.discriminator.by_guide:
        others = (name for name, row in SCHEDULES.items() if not row.alternating)
        raise UserError(
            f"schedule: recipe {config.recipe} has a discriminator for each guide, which step "
            f"together, and under {config.schedule} the guides take turns; use --schedule with one "
            f"of {', '.join(others)}"
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
