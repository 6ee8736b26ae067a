"""The loss modules: modules whose forward computes one whole loss.

A wrapper (DDP, ZeRO) therefore sees one forward per backward. D and C are passed to the generator
loss frozen, as arguments. The recipe (recipes.py) decides the terms of a loss.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels
from stargan_dist.data.order import PAIR
from stargan_dist.nets.blocks import DiscriminatorOutput, Encoded
from stargan_dist.nets.masks import MaskFunction, no_masks
from stargan_dist.nets.networks import Networks, generator_networks
from stargan_dist.objectives import noise
from stargan_dist.objectives.conditioning import Gaussian
from stargan_dist.objectives.losses import linear_decay
from stargan_dist.objectives.recipe import Guide, Recipe, Term, Terms


class Translation(NamedTuple):
    """A translation of the sources. Phases of one iteration share it."""

    encoded: Encoded  # the half of G that does not depend on the guide
    style: Tensor
    fake: Tensor
    source_styles: Gaussian | None = None  # of the sources, where a partner is the guide
    source_style: Tensor | None = None  # a sample of these
    fake2: Tensor | None = None  # of the second style, where the guide has two fakes

    @property
    def fakes(self) -> list[Tensor]:
        """The fakes that D sees."""
        return [self.fake] if self.fake2 is None else [self.fake, self.fake2]


def of_partners(tensor: Tensor) -> Tensor:
    """Swap the two rows of each pair (B, …): each image gets what is its partner's."""
    return tensor.unflatten(0, (-1, PAIR)).flip(1).flatten(0, 1)


def with_prefix(prefix: str, terms: Terms) -> Terms:
    return {f"{prefix}/{name}": term for name, term in terms.items()}


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Build graphs in which gradients pass through these networks but not to their weights."""
    for network in networks:
        network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            network.requires_grad_(True)


class DiscriminatorPass:
    """D applied to real images and fakes: the argument of the terms of D's loss.

    Attributes:
        real_images: (B, 3, H, H), which require a gradient.
        fake_images: (B·n, 3, H, H), detached: of n guides.
        fake_labels: their targets.
        real: output for the real images. Penalties may differentiate its gradient.
    """

    def __init__(
        self, D: nn.Module, labels: Labels, batch: Batch, fake: Tensor, *, penalised: bool
    ) -> None:
        self.D, self.labels, self.batch = D, labels, batch
        self.fake_images = fake.detach()
        guides = len(fake) // len(batch.x)
        self.fake_labels = batch.y_trg.repeat(guides, *[1] * (batch.y_trg.dim() - 1))
        self.real_images = batch.x.detach().requires_grad_(penalised)
        self.real: DiscriminatorOutput = D(self.real_images, batch.y, double_backward=penalised)

    @cached_property
    def fake(self) -> DiscriminatorOutput:
        """Output for the fakes, as images of the target label."""
        output: DiscriminatorOutput = self.D(self.fake_images, self.fake_labels)
        return output

    def score(self, x: Tensor) -> Tensor:
        """Return `src` for any images, as images of the target label, for a gradient penalty."""
        output: DiscriminatorOutput = self.D(x, self.fake_labels, double_backward=True)
        return output.src


class GeneratorPass:
    """A translation and what the networks make of it: the argument of the generator's terms.

    Attributes:
        D: the discriminator of the guide's fakes.
        C: the discriminator of contents, where the recipe has it.
        style: (B, style dim); of length 0 where the label alone conditions G.
        fake: (B, 3, H, H).
    """

    def __init__(
        self,
        networks: "GeneratorLoss",
        batch: Batch,
        guide: Guide,
        D: nn.Module,
        translation: Translation,
        C: nn.Module | None = None,
    ) -> None:
        self.networks, self.batch, self.guide, self.D, self.C = networks, batch, guide, D, C
        self.translation = translation
        self.encoded, self.style, self.fake = translation[:3]
        self.labels, self.conditioning = networks.labels, networks.conditioning

    @cached_property
    def output(self) -> DiscriminatorOutput:
        """D's output for the fake, as an image of the target label."""
        output: DiscriminatorOutput = self.D(self.fake, self.batch.y_trg)
        return output

    @cached_property
    def outputs(self) -> list[DiscriminatorOutput]:
        """D's output for each fake of a source that trains G."""
        others = self.translation.fakes[1:]
        return [self.output, *(self.D(fake, self.batch.y_trg) for fake in others)]

    @cached_property
    def content_logits(self) -> Tensor:
        """C's output for the contents of the sources."""
        assert self.C is not None
        logits: Tensor = self.C(self.encoded.bottleneck)
        return logits

    @property
    def source_styles(self) -> Gaussian:
        """The distributions of the styles of the sources, where a partner is the guide."""
        assert self.translation.source_styles is not None
        return self.translation.source_styles

    @cached_property
    def style_pred(self) -> Tensor:
        """The style that E predicts from the fake."""
        return self.conditioning.style_from_images(self.fake, self.batch.y_trg)

    @cached_property
    def style2(self) -> Tensor:
        """A second style for the same target, without a graph."""
        with torch.no_grad():
            return self.networks.style(self.batch, self.guide, second=True)

    @cached_property
    def fake2(self) -> Tensor:
        """The source translated with the second style, without a graph unless it trains G."""
        if self.translation.fake2 is not None:
            return self.translation.fake2
        with torch.no_grad():
            vector = self.conditioning.vector(self.style2, self.batch.y_trg)
            fake: Tensor = self.networks.G.decode(self.encoded, vector)
            return fake

    @cached_property
    def source_vector(self) -> Tensor:
        """The conditioning of G with the label and the style of the source."""
        x, y, style = self.batch.x, self.batch.y, self.translation.source_style
        style = self.conditioning.style_from_images(x, y) if style is None else style
        return self.conditioning.vector(style, y)

    @cached_property
    def encoded_fake(self) -> Encoded:
        """The half of G, for the fake, that does not depend on the guide."""
        masks = self.networks.masks(self.fake)
        return self.networks.encode(
            self.fake, masks, self.batch.y_trg, self.batch, noise.CONTENT_OF_FAKE
        )

    @cached_property
    def reconstruction(self) -> Tensor:
        """The fake translated back, with the label and the style of the source."""
        reconstruction: Tensor = self.networks.G.decode(self.encoded_fake, self.source_vector)
        return reconstruction

    @cached_property
    def cross_reconstruction(self) -> Tensor:
        """The fake translated back, with the label and a sampled style of the partner's fake.

        In DRIT, two images exchange their attributes twice.
        """
        styles = self.conditioning.distribution(self.fake, self.batch.y_trg)
        style = of_partners(_sample(styles, self.batch, noise.ATTRIBUTE_OF_FAKE))
        vector = self.conditioning.vector(style, self.batch.y)
        reconstruction: Tensor = self.networks.G.decode(self.encoded_fake, vector)
        return reconstruction

    @cached_property
    def identity(self) -> Tensor:
        """The source translated with its own label and style: itself, if G changes no more."""
        identity: Tensor = self.networks.G.decode(self.encoded, self.source_vector)
        return identity


def _sample(styles: Gaussian, batch: Batch, purpose: int) -> Tensor:
    """Sample styles (B, dim), one for each slot."""
    return styles.sample(noise.normal_noise(batch.mix, styles.mean.shape[1:], purpose))


def weight_at(term: Term, step: int, ds_iter: int) -> float:
    """Return the weight of a term at a step."""
    return term.weight * (linear_decay(step, 0, ds_iter) if term.decays else 1.0)


def _weighted_sum(
    terms: Sequence[Term], values: Mapping[str, Tensor], step: int, ds_iter: int
) -> Tensor:
    signed = (
        (-1.0 if term.maximised else 1.0) * weight_at(term, step, ds_iter) * values[term.name]
        for term in terms
    )
    return torch.stack(list(signed)).sum()


def _sum(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack([*values]).sum()


def _detached(values: Terms) -> Terms:
    return {name: value.detach() for name, value in values.items()}


def discriminator_of(recipe: Recipe, D: nn.Module, guide: Guide) -> nn.Module:
    """Return the discriminator of a guide's fakes: D, or one of those that D lists."""
    if not recipe.discriminator.by_guide:
        return D
    assert isinstance(D, nn.ModuleList)
    return D[recipe.guides.index(guide)]


class DiscriminatorLoss(nn.Module):
    """D's loss on real images with their labels and on fakes with their targets."""

    def __init__(self, recipe: Recipe, networks: Networks, labels: Labels) -> None:
        super().__init__()
        self.D = networks["D"]
        self.recipe, self.labels = recipe, labels

    def forward(
        self, batch: Batch, fake: Tensor, terms: Sequence[Term] | None = None
    ) -> tuple[Tensor, Terms]:
        """Return the loss and its detached terms.

        Args:
            fake: (B·n, 3, H, H), of n guides.
            terms: of the loss, with their weights in this iteration; None: those of the recipe.
        """
        terms = self.recipe.discriminator_terms if terms is None else terms
        penalised = any(term.penalises for term in terms)
        passes = [
            DiscriminatorPass(D, self.labels, batch, fakes, penalised=penalised)
            for D, fakes in self._networks_and_fakes(batch, fake)
        ]
        values = {term.name: _sum([term.compute(d) for d in passes]) for term in terms}
        return _weighted_sum(terms, values, 0, self.recipe.ds_iter), _detached(values)

    def _networks_and_fakes(self, batch: Batch, fake: Tensor) -> list[tuple[nn.Module, Tensor]]:
        """Return D and all fakes; or for each guide its own D, and the guide's fakes."""
        if not self.recipe.discriminator.by_guide:
            return [(self.D, fake)]
        guides = self.recipe.guides
        fakes = fake.split([guide.fakes * len(batch.x) for guide in guides])
        networks = [discriminator_of(self.recipe, self.D, guide) for guide in guides]
        return [*zip(networks, fakes, strict=True)]


class ContentPass:
    """C applied to the contents of the sources: the argument of the terms of C's loss.

    Attributes:
        logits: C's output, (B, patches).
    """

    def __init__(self, C: nn.Module, batch: Batch, contents: Tensor) -> None:
        self.batch = batch
        self.logits: Tensor = C(contents.detach())


class ContentLoss(nn.Module):
    """C's loss on the contents of the sources."""

    def __init__(self, recipe: Recipe, networks: Networks) -> None:
        super().__init__()
        self.C, self.recipe = networks["C"], recipe

    def forward(self, batch: Batch, contents: Tensor) -> tuple[Tensor, Terms]:
        """Return the loss and its detached terms. contents: (B, C, h, w)."""
        c, terms = ContentPass(self.C, batch, contents), self.recipe.content_terms
        values = {term.name: term.compute(c) for term in terms}
        return _weighted_sum(terms, values, 0, self.recipe.ds_iter), _detached(values)


class GeneratorLoss(nn.Module):
    """The loss of all networks except D and C, which are its submodules by letter.

    Args:
        masks: makes the masks of fakes, to translate them back. Those of the sources are in the
            batch.
    """

    G: Any  # a generator of nets/, with `encode` and `decode`

    def __init__(
        self,
        recipe: Recipe,
        networks: Networks,
        labels: Labels,
        masks: MaskFunction = no_masks,
    ) -> None:
        super().__init__()
        for letter, network in generator_networks(networks).items():
            self.add_module(letter, network)
        self.recipe, self.labels, self.masks = recipe, labels, masks
        self.conditioning = recipe.conditioning(dict(self.named_children()), labels)

    def encode(
        self, x: Tensor, masks: Tensor | None, y: Tensor, batch: Batch, purpose: int
    ) -> Encoded:
        """Return the half of G that does not depend on the guide, with the recipe's noise.

        Args:
            x: (B, 3, H, H), images of the labels y.
            batch: has the draws of the noise.
            purpose: of the noise.
        """
        encoded: Encoded = self.G.encode(x, masks, y)
        deviation, content = self.recipe.content_noise, encoded.bottleneck
        if not deviation:
            return encoded
        added = noise.normal_noise(batch.mix, content.shape[1:], purpose)
        return encoded._replace(bottleneck=content + deviation * added)

    def encode_sources(self, batch: Batch) -> Encoded:
        return self.encode(batch.x, batch.masks, batch.y, batch, noise.CONTENT)

    def style(self, batch: Batch, guide: Guide, *, second: bool = False) -> Tensor:
        """Return the guide's style for y_trg, or a second one."""
        inputs = getattr(batch, guide.inputs[second])
        if guide.reference:
            return self.conditioning.style_from_images(inputs, batch.y_trg)
        return self.conditioning.style_from_latents(inputs, batch.y_trg)

    def not_trained_by(self, guide: Guide) -> list[nn.Module]:
        """List the networks that a guide does not train. Gradients only pass through them."""
        return [network for name, network in self.named_children() if name not in guide.trains]

    def translate(self, batch: Batch, guide: Guide, encoded: Encoded | None = None) -> Translation:
        """Translate the sources of a batch to y_trg, from their encodings if given."""
        with frozen(*self.not_trained_by(guide)):
            encoded = encoded or self.encode_sources(batch)
            if guide.partner:
                return self._translate_by_partners(batch, encoded)
            style = self.style(batch, guide)
            fake = self._decode(encoded, style, batch)
            if guide.fakes == 1:
                return Translation(encoded, style, fake)
            fake2 = self._decode(encoded, self.style(batch, guide, second=True), batch)
            return Translation(encoded, style, fake, fake2=fake2)

    def _translate_by_partners(self, batch: Batch, encoded: Encoded) -> Translation:
        styles = self.conditioning.distribution(batch.x, batch.y)
        own = _sample(styles, batch, noise.ATTRIBUTE)
        style = of_partners(own)
        return Translation(encoded, style, self._decode(encoded, style, batch), styles, own)

    def _decode(self, encoded: Encoded, style: Tensor, batch: Batch) -> Tensor:
        fake: Tensor = self.G.decode(encoded, self.conditioning.vector(style, batch.y_trg))
        return fake

    def forward(
        self,
        batch: Batch,
        guides: Sequence[Guide],
        D: nn.Module,
        step: int,
        translations: Sequence[Translation] = (),
        terms: Sequence[Sequence[Term]] = (),
        C: nn.Module | None = None,
    ) -> tuple[Tensor, Terms]:
        """Return the sum of the guides' losses at a step, and its detached terms.

        Args:
            translations: for each guide, by the networks in their present state; if empty, they are
                computed here.
            terms: for each guide, with their weights in this iteration; if empty, those of the
                recipe.
            C: the discriminator of contents, where the recipe has it.
        """
        terms = terms or [self.recipe.terms_of(guide) for guide in guides]
        loss = batch.x.new_zeros(())
        values_by_name: Terms = {}
        ds_iter = self.recipe.ds_iter
        translations = translations or [self.translate(batch, guide) for guide in guides]
        for guide, translation, due in zip(guides, translations, terms, strict=True):
            with frozen(D, *([C] if C else []), *self.not_trained_by(guide)):
                of_guide = discriminator_of(self.recipe, D, guide)
                g = GeneratorPass(self, batch, guide, of_guide, translation, C)
                values = {term.name: term.compute(g) for term in due}
            loss = loss + _weighted_sum(due, values, step, ds_iter)
            values_by_name |= with_prefix(guide.name, _detached(values))
        return loss, values_by_name
