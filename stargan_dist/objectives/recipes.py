"""One table from StarGAN (arXiv 1711.09020) to StarGAN v2 (arXiv 1912.01865, table 1).

A recipe is a row of data. A row of your own needs no change elsewhere, and for a new term one pure
function of tensors in losses.py. docs/recipes.md explains the table, equation by equation.
"""

import dataclasses
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from stargan_dist.config import Config, LossConfig, ModelConfig, OptimConfig
from stargan_dist.data.labels import Labels
from stargan_dist.errors import UserError
from stargan_dist.nets import v1, v2
from stargan_dist.objectives import losses
from stargan_dist.objectives.loss_modules import DiscriminatorPass, GeneratorPass
from stargan_dist.objectives.recipe import (
    Critic,
    DiscriminatorOutput,
    Guide,
    Networks,
    Recipe,
    Style,
    Term,
)

# Forms of the networks.


def _sizes(model: ModelConfig) -> dict[str, int]:
    return {
        "image_size": model.image_size,
        "base_width": model.base_width,
        "max_width": model.max_width,
    }


def adain(dim: int, model: ModelConfig) -> nn.Module:
    return v2.Generator(style_dim=dim, w_hpf=model.w_hpf, **_sizes(model))


def concatenation(dim: int, model: ModelConfig) -> nn.Module:
    return v2.ConcatGenerator(dim, **_sizes(model))


def stargan(dim: int, model: ModelConfig) -> nn.Module:
    return v1.Generator(dim, model.base_width)


def mapping_network(num_domains: int, model: ModelConfig) -> nn.Module:
    return v2.MappingNetwork(
        num_domains, model.latent_dim, model.style_dim, model.mapping_dim, model.mapping
    )


def style_encoder(num_domains: int, model: ModelConfig) -> nn.Module:
    return v2.StyleEncoder(num_domains, style_dim=model.style_dim, **_sizes(model))


def latent_encoder(_num_domains: int, model: ModelConfig) -> nn.Module:
    return v2.LatentEncoder(style_dim=model.latent_dim, **_sizes(model))


# Critics.


def _one_of_many(D: nn.Module, x: Tensor, y: Tensor, *, exact: bool) -> DiscriminatorOutput:
    return DiscriminatorOutput(D(x, y, exact=exact))


def _with_labels(D: nn.Module, x: Tensor, _y: Tensor, *, exact: bool) -> DiscriminatorOutput:
    return DiscriminatorOutput(*D(x, exact=exact))


MULTI_TASK = Critic(
    lambda labels, model: v2.Discriminator(labels, **_sizes(model)), _one_of_many, by_domain=True
)
ACGAN = Critic(
    lambda labels, model: v2.ClassifyingDiscriminator(labels, **_sizes(model)),
    _with_labels,
    by_domain=False,
)
STARGAN = Critic(
    lambda labels, model: v1.Discriminator(labels, **_sizes(model)), _with_labels, by_domain=False
)

# What G is given beside a label, or instead of one.


def _read(networks: Networks, x: Tensor, y: Tensor) -> Tensor:
    return networks["E"](x, y)


NOTHING = Style(
    dim=lambda model: 0,
    networks={},
    of_latents=lambda networks, z, y: z[:, :0],
    of_images=lambda networks, x, y: x.new_zeros(len(x), 0),
)
LATENT_ITSELF = Style(
    dim=lambda model: model.latent_dim,
    networks={"E": latent_encoder},
    of_latents=lambda networks, z, y: z,
    of_images=_read,
)
STYLE_CODE = Style(
    dim=lambda model: model.style_dim,
    networks={"F": mapping_network, "E": style_encoder},
    of_latents=lambda networks, z, y: networks["F"](z, y),
    of_images=_read,
)

BY_LABEL = Guide("label", ("G",))
BY_LATENT = Guide("latent", ("G", "E"))
LATENT = Guide("latent", ("G", "F", "E"))
REFERENCE = Guide("reference", ("G",), ("x_ref", "x_ref2"), reference=True)

# Terms.


def classification_of_real(seen: DiscriminatorPass) -> Tensor:
    assert seen.real.cls is not None
    return seen.labels.classification_loss(seen.real.cls, seen.batch.y)


def classification_of_fake(made: GeneratorPass) -> Tensor:
    assert made.judged.cls is not None
    return made.labels.classification_loss(made.judged.cls, made.batch.y_trg)


def wasserstein(penalty: float) -> tuple[Term, ...]:
    """Of D: Wasserstein with gradient penalty."""
    return (
        Term("real", lambda seen: losses.wasserstein_real(seen.real.src)),
        Term("fake", lambda seen: losses.wasserstein_fake(seen.fake.src)),
        Term("reg", lambda s: losses.gradient_penalty(s.score, s.x, s.fake_images, s.batch.mix),
             penalty),
    )  # fmt: skip


# R1 ahead of the fakes: the order decides the last bits of D's gradient.
LOGISTIC = (
    Term("real", lambda seen: losses.logistic_real(seen.real.src)),
    Term("reg", lambda seen: losses.r1(seen.real.src, seen.x)),
    Term("fake", lambda seen: losses.logistic_fake(seen.fake.src)),
)
FOOL_CRITIC = Term("adv", lambda made: losses.wasserstein_real(made.judged.src))
FOOL = Term("adv", lambda made: losses.logistic_real(made.judged.src))
CLASSIFY = Term("cls", classification_of_real)
CLASSIFIED = Term("cls", classification_of_fake)
STYLE = Term("sty", lambda made: losses.l1(made.style_pred, made.style))
DIVERSITY = Term(
    "ds", lambda made: losses.l1(made.fake, made.fake2), maximised=True, falls=True
)  # fmt: skip
MODE_SEEKING = Term(
    "ms", lambda made: losses.mode_seeking(made.fake, made.fake2, made.style.detach(), made.style2)
)
CYCLE = Term("cyc", lambda made: losses.l1(made.back, made.batch.x))
CYCLE_10 = CYCLE._replace(weight=10.0)

# Optimizers.

ADAM_V1 = OptimConfig(
    lr=1e-4, lr_mapping=1e-4, betas=(0.5, 0.999), weight_decay=0.0, ema=0.0,
    decay_begin=100_000, decay_end=200_000,
)  # fmt: skip
ADAM_V2 = OptimConfig(
    lr=1e-4, lr_mapping=1e-6, betas=(0.0, 0.99), weight_decay=1e-4, ema=0.999,
    decay_begin=0, decay_end=0,
)  # fmt: skip

# The table. Rows a to f have the networks' bodies of StarGAN v2, so that each differs from the one
# before it by what it says alone.

STARGAN_ROW = Recipe(
    about="StarGAN as published",
    generator=stargan,
    critic=STARGAN,
    label=True,
    style=NOTHING,
    discriminator_terms=(*wasserstein(10.0), CLASSIFY),
    terms=(FOOL_CRITIC, CLASSIFIED, CYCLE_10),
    guides=(BY_LABEL,),
    optim=ADAM_V1,
    critic_steps=5,
    crops=0.0,
    permuted=True,
    max_width=v1.MAX_WIDTH,
)
A = replace(
    STARGAN_ROW,
    about="StarGAN on the networks' bodies of StarGAN v2",
    generator=concatenation,
    critic=ACGAN,
    crops=0.5,
    optim=replace(ADAM_V2, betas=(0.5, 0.999)),
    max_width=512,
)
B = replace(
    A,
    about="A with a multi-task discriminator",
    critic=MULTI_TASK,
    discriminator_terms=wasserstein(10.0),
    terms=(FOOL_CRITIC, CYCLE_10),
)
C = replace(
    B,
    about="B with R1 and the logistic loss, and AdaIN instead of concatenation",
    generator=adain,
    discriminator_terms=LOGISTIC,
    terms=(FOOL, CYCLE),
    critic_steps=1,
    permuted=False,
    optim=ADAM_V2,
)
C_ACGAN = replace(
    C,
    about="C with A's discriminator: the tuned row for labels of any kind",
    critic=ACGAN,
    discriminator_terms=(*LOGISTIC, CLASSIFY),
    terms=(FOOL, CLASSIFIED, CYCLE),
    permuted=True,
)
D = replace(
    C,
    about="C with a latent injected into G",
    style=LATENT_ITSELF,
    terms=(FOOL, STYLE, CYCLE),
    guides=(BY_LATENT,),
)
E = replace(
    D,
    about="C with style codes of the domains (F and E) in place of label and latent",
    label=False,
    style=STYLE_CODE,
    guides=(LATENT, REFERENCE),
)
F = replace(
    E,
    about="E with diversity regularisation: StarGAN v2",
    terms=(FOOL, STYLE, DIVERSITY, CYCLE),
)
F_MODE_SEEKING = replace(
    F,
    about="F with MSGAN's ratio in place of the diversity term",
    terms=(FOOL, STYLE, MODE_SEEKING, CYCLE),
)

TABLE = {
    "stargan": STARGAN_ROW,
    "a": A,
    "b": B,
    "c": C,
    "c_acgan": C_ACGAN,
    "d": D,
    "e": E,
    "f": F,
    "f_mode_seeking": F_MODE_SEEKING,
}


def recipe_of(config: Config) -> Recipe:
    """The row that a configuration names, with the weights and rates that it gives instead.

    Raises:
        UserError: there is no such row, it has no such term, or no use for the data's labels.
    """
    if config.recipe not in TABLE:
        raise UserError(f"recipe: {config.recipe} is not one of {', '.join(TABLE)}")
    row = TABLE[config.recipe]
    if not (row.takes_labels or config.data.by_domain):
        takers = ", ".join(name for name, other in TABLE.items() if other.takes_labels)
        raise UserError(
            f"recipe: {config.recipe} translates into the domains of a single set, and "
            "data.sources has other labels: name shards as data.shards, or take one of "
            f"{takers} (--recipe)"
        )
    given = _given(config.loss)
    ds_iter = given.pop("ds_iter")
    own = {term.name for term in (*row.discriminator_terms, *row.terms)}
    for name in given.keys() - own:
        raise UserError(f"loss.{name}: recipe {config.recipe} has no such term; leave it at null")
    return replace(
        row,
        discriminator_terms=_weighted(row.discriminator_terms, given),
        terms=_weighted(row.terms, given),
        ds_iter=ds_iter,
        optim=replace(row.optim, **_given(config.optim)),
    )


def _given(part: LossConfig | OptimConfig) -> dict[str, Any]:
    """The fields of a part of the configuration that are not null."""
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return {name: value for name, value in fields.items() if value is not None}


def _weighted(terms: tuple[Term, ...], weights: dict[str, float]) -> tuple[Term, ...]:
    return tuple(term._replace(weight=weights.get(term.name, term.weight)) for term in terms)


def resolved(config: Config) -> Config:
    """A configuration that says all numbers of its recipe itself, as a run keeps them.

    Raises:
        UserError: as `row_of`.
    """
    row = recipe_of(config)
    weights = {term.name: term.weight for term in (*row.discriminator_terms, *row.terms)}
    loss = {field.name: weights.get(field.name) for field in dataclasses.fields(LossConfig)}
    return replace(
        config,
        loss=LossConfig(**loss | {"ds_iter": row.ds_iter}),  # type: ignore[arg-type]
        optim=row.optim,
        model=replace(config.model, max_width=config.model.max_width or row.max_width),
    )


def build_networks(row: Recipe, labels: Labels, model: ModelConfig) -> dict[str, nn.Module]:
    """The networks of a recipe by letter, initialised from torch's current random state."""
    networks = {"G": row.generator(row.conditioning_dim(labels, model), model)}
    networks |= {
        letter: make(labels.num_labels, model) for letter, make in row.style.networks.items()
    }
    return networks | {"D": row.critic.network(labels.num_labels, model)}
