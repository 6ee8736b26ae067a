"""Guides and loss terms of the recipes: terms apply the losses (losses.py) to a pass."""

from collections.abc import Callable

import torch
from torch import Tensor

from stargan_dist.nets.blocks import DiscriminatorOutput
from stargan_dist.objectives import losses
from stargan_dist.objectives.loss_modules import ContentPass, DiscriminatorPass, GeneratorPass
from stargan_dist.objectives.recipe import Guide, Term

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


CONTENT_DOMAIN = Term("dom", domain_of_content)


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
