"""Components of a recipe. The recipes themselves are rows of a table: recipes.py."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from stargan_dist.config import ModelConfig, OptimConfig
from stargan_dist.data.labels import Labels
from stargan_dist.data.order import PAIR
from stargan_dist.data.stream import DRAWN, OTHER, PERMUTED
from stargan_dist.data.transforms import RANDOM_CROP, Crop
from stargan_dist.nets.networks import Networks
from stargan_dist.objectives.conditioning import Conditioning, NetworkBuilder, NoStyle

Terms = dict[str, Tensor]


class DiscriminatorForm(NamedTuple):
    """A form of D.

    Attributes:
        build: builds D for a number of labels. All forms have one signature,
            D(x, y, double_backward=False) -> DiscriminatorOutput (nets/blocks.py).
        by_domain: D has one output per domain, so labels must be domains.
        by_guide: D is a list of such networks, one for the fakes of each guide of the recipe. They
            step together, so that the guides cannot take turns.
    """

    build: NetworkBuilder
    by_domain: bool
    by_guide: bool = False


class Guide(NamedTuple):
    """Where a style comes from, and the networks that the generator step then trains.

    Attributes:
        name: in the names of loss terms.
        trains: letters of these networks.
        inputs: fields of the batch, for the style and for a second style.
        reference: the inputs are images of the target domain; otherwise latents.
        partner: the style is that of the other image of the pair, of which E predicts a
            distribution (`GaussianStyle`); there are no inputs.
        fakes: 2: the fake of the second input trains G and D, too.
    """

    name: str
    trains: tuple[str, ...]
    inputs: tuple[str, str] = ("z", "z2")
    reference: bool = False
    partner: bool = False
    fakes: int = 1


class Term(NamedTuple):
    """A term of a loss.

    Attributes:
        name: also the field of `loss.*` that overrides the weight.
        compute: a pure function of a DiscriminatorPass, GeneratorPass or ContentPass
            (loss_modules.py).
        weight: factor of the term in the loss.
        maximised: the term is subtracted.
        decays: the weight decays linearly to 0 at step `loss.ds_iter`.
        penalises: the term of D differentiates its gradient.
        optional: where its weight is 0, the term is not computed.
        guide: name of the guide with which the generator loss has the term; empty: each.
    """

    name: str
    compute: Callable[[Any], Tensor]
    weight: float = 1.0
    maximised: bool = False
    decays: bool = False
    penalises: bool = False
    optional: bool = False
    guide: str = ""


@dataclass(frozen=True)
class Recipe:
    """A row of the table.

    Attributes:
        description: the recipe in words.
        generator: builds G, given the length of its conditioning vector.
        discriminator: the form of D.
        with_label: G is conditioned on the label of the target.
        outlines: G has the high-pass option, `model.w_hpf`.
        style: the style that G is conditioned on.
        discriminator_terms: terms of D's loss, in the order of their computation.
        generator_terms: terms of the loss of all other networks.
        guides: each is followed by one step of D and one generator step. Schedules may sum them
            up, or give each iteration one of them (schedules.py). The first one trains all
            networks that any of them trains.
        optim: defaults of `optim.*`.
        content_discriminator: builds C, which sees the contents that G encodes (None: no C).
        content_terms: terms of C's loss.
        content_noise: deviation of normal noise on contents in training.
        discriminator_steps: iterations per generator step.
        every_iteration: the discriminators that step in each of them; others step in those with
            generator steps.
        generator_first: in an iteration, the generator steps before D.
        pool_size: earlier fakes that each of D's pools holds (objectives/pool.py); 0: no pool.
        crop: random crop of a training image.
        targets: choice of the target labels, a key of `TARGETS` (data/stream.py).
        max_width: largest number of channels.
        latent_dim: length of a latent.
        references_guide: references can guide trained models, though no guide of training has any.
        ds_iter: default of `loss.ds_iter`.
    """

    description: str
    generator: NetworkBuilder
    discriminator: DiscriminatorForm
    with_label: bool
    style: NoStyle
    discriminator_terms: tuple[Term, ...]
    generator_terms: tuple[Term, ...]
    guides: tuple[Guide, ...]
    optim: OptimConfig
    content_discriminator: NetworkBuilder | None = None
    content_terms: tuple[Term, ...] = ()
    content_noise: float = 0.0
    discriminator_steps: int = 1
    every_iteration: tuple[str, ...] = ("D",)
    generator_first: bool = False
    pool_size: int = 0
    crop: Crop = RANDOM_CROP
    targets: str = DRAWN
    max_width: int = 512
    latent_dim: int = 16
    references_guide: bool = False
    outlines: bool = False
    ds_iter: int = 100_000

    def __post_init__(self) -> None:
        assert not any(t.decays for t in self.discriminator_terms), "weights of D do not decay"
        has_pools = self.takes_pairs and len(self.guides) == 1
        assert has_pools or not self.pool_size, "pools are those of the fakes of a pair"
        has_partners = self.takes_pairs or not any(guide.partner for guide in self.guides)
        assert has_partners, "the partner of an image is the other one of its pair"

    @property
    def uses_references(self) -> bool:
        """A guide is a reference image."""
        return any(guide.reference for guide in self.guides)

    @property
    def guided_by_references(self) -> bool:
        """References can guide trained models."""
        by_images = any(guide.reference or guide.partner for guide in self.guides)
        return by_images or self.references_guide

    @property
    def terms(self) -> tuple[Term, ...]:
        """All terms."""
        return (*self.discriminator_terms, *self.content_terms, *self.generator_terms)

    def terms_of(self, guide: Guide) -> list[Term]:
        """Return the terms of the generator loss with a guide."""
        return [term for term in self.generator_terms if term.guide in ("", guide.name)]

    @property
    def is_diverse(self) -> bool:
        """G is given a style, so that outputs for one label may differ."""
        return bool(self.style.networks)

    @property
    def accepts_any_labels(self) -> bool:
        """Labels may be other than the domains of a single data source.

        F and some forms of D have an output per domain, and drawn targets are domains.
        """
        by_domain = self.discriminator.by_domain or "F" in self.style.networks
        return self.targets == PERMUTED and not by_domain

    @property
    def takes_pairs(self) -> bool:
        """Each micro-batch of a process has an image of each of two domains, or several pairs."""
        return self.targets == OTHER

    @property
    def sources_together(self) -> int:
        """The number of consecutive slots that are in one micro-batch."""
        return PAIR if self.takes_pairs else 1

    def with_sizes(self, model: ModelConfig) -> ModelConfig:
        """Return a model with this recipe's sizes in place of zeros."""
        return replace(
            model,
            max_width=model.max_width or self.max_width,
            latent_dim=model.latent_dim or self.latent_dim,
        )

    def conditioning_dim(self, labels: Labels, model: ModelConfig) -> int:
        """Return the length of the vector that G is conditioned on."""
        return (labels.vector_dim if self.with_label else 0) + self.style.dim(model)

    def conditioning(self, networks: Networks, labels: Labels) -> Conditioning:
        """Return the conditioning by this recipe's networks."""
        return Conditioning(self.style, networks, labels, with_label=self.with_label)

    def build_networks(self, labels: Labels, model: ModelConfig) -> dict[str, nn.Module]:
        """Build the networks by letter, initialised from torch's current random state."""
        model, num_labels = self.with_sizes(model), labels.num_labels
        networks = {"G": self.generator(self.conditioning_dim(labels, model), model)}
        for letter, build in self.style.networks.items():
            networks[letter] = build(num_labels, model)
        networks["D"] = self.discriminator.build(num_labels, model)
        if self.content_discriminator:
            networks["C"] = self.content_discriminator(num_labels, model)
        return networks
