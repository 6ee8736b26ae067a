"""The two sides of a game: modules whose forward computes one whole loss.

So whatever wraps a side (DDP, ZeRO) sees one forward per backward. D is handed to the generator
side frozen, as an argument. Which terms a loss has says a row of the table (recipes.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels
from stargan_dist.nets.blocks import Encoded
from stargan_dist.objectives.conditioning import Conditioning
from stargan_dist.objectives.losses import falling
from stargan_dist.objectives.recipe import DiscriminatorOutput, Guide, Networks, Recipe, Term, Terms


class Translation(NamedTuple):
    """A source on its way to the target. Phases of one iteration share it."""

    encoded: Encoded  # the half of G that does not depend on the guide
    style: Tensor
    fake: Tensor


def named(prefix: str, terms: Terms) -> Terms:
    return {f"{prefix}/{name}": term for name, term in terms.items()}


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Build a graph in which these networks have no weight gradients, but pass them through."""
    for network in networks:
        network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            network.requires_grad_(True)


class DiscriminatorPass:
    """Real images and fakes before D: what the terms of its loss are functions of.

    Attributes:
        x: real images, which require a gradient.
        real: the judgement of them. Exact, since penalties differentiate it twice.
    """

    def __init__(self, row: Recipe, D: nn.Module, labels: Labels, batch: Batch, fake: Tensor):
        self.row, self.D, self.labels, self.batch = row, D, labels, batch
        self.fake_images = fake.detach()
        self.x = batch.x.detach().requires_grad_()
        self.real = row.critic.ask(D, self.x, batch.y, exact=True)

    @cached_property
    def fake(self) -> DiscriminatorOutput:
        return self.row.critic.ask(self.D, self.fake_images, self.batch.y_trg, exact=False)

    def score(self, x: Tensor) -> Tensor:
        """Real or fake, of images that would be of the target's label."""
        return self.row.critic.ask(self.D, x, self.batch.y_trg, exact=True).src


class GeneratorPass:
    """A translation: what the terms of the generator side's loss are functions of.

    Attributes:
        style: the guide's style; of length 0 where G is given a label alone.
        fake: (B, 3, H, H).
    """

    def __init__(
        self,
        side: "GeneratorLoss",
        batch: Batch,
        guide: Guide,
        D: nn.Module,
        translation: Translation,
    ) -> None:
        self.side, self.batch, self.guide, self.D = side, batch, guide, D
        self.encoded, self.style, self.fake = translation
        self.labels = side.labels

    @cached_property
    def judged(self) -> DiscriminatorOutput:
        """What D says of the fake as one of the target."""
        return self.side.row.critic.ask(self.D, self.fake, self.batch.y_trg, exact=False)

    @cached_property
    def style_pred(self) -> Tensor:
        """The style that E finds in the fake."""
        return self.side.codes.style_from_images(self.fake, self.batch.y_trg)

    @cached_property
    def style2(self) -> Tensor:
        """A second style for the same target; without a graph."""
        with torch.no_grad():
            return self.side.style(self.batch, self.guide, second=True)

    @cached_property
    def fake2(self) -> Tensor:
        """The source translated by the second style; without a graph."""
        with torch.no_grad():
            code = self.side.codes.code(self.style2, self.batch.y_trg)
            return self.side.G.decode(self.encoded, code)

    @cached_property
    def back(self) -> Tensor:
        """The fake translated back, by the source's own label and style."""
        codes, x, y = self.side.codes, self.batch.x, self.batch.y
        return self.side.G(self.fake, codes.code(codes.style_from_images(x, y), y))


def weight_at(term: Term, step: int, ds_iter: int) -> float:
    """The weight of a term at a step."""
    return term.weight * (falling(step, 0, ds_iter) if term.falls else 1.0)


def _sum(terms: Sequence[Term], values: Mapping[str, Tensor], step: int, ds_iter: int) -> Tensor:
    """The loss: its terms, each with its weight at this step."""
    signed = (
        (-1.0 if term.maximised else 1.0) * weight_at(term, step, ds_iter) * values[term.name]
        for term in terms
    )
    return torch.stack(list(signed)).sum()


def _detached(values: Terms) -> Terms:
    return {name: value.detach() for name, value in values.items()}


class DiscriminatorLoss(nn.Module):
    """D on real images and their labels, fakes and their targets."""

    def __init__(self, row: Recipe, networks: Networks, labels: Labels) -> None:
        super().__init__()
        self.D = networks["D"]
        self.row, self.labels = row, labels

    def forward(self, batch: Batch, fake: Tensor) -> tuple[Tensor, Terms]:
        seen = DiscriminatorPass(self.row, self.D, self.labels, batch, fake)
        values = {term.name: term.of(seen) for term in self.row.discriminator_terms}
        loss = _sum(self.row.discriminator_terms, values, 0, self.row.ds_iter)
        return loss, _detached(values)


class GeneratorLoss(nn.Module):
    """All networks but D."""

    G: Any  # a network of nets/: `encode`, `decode`

    def __init__(self, row: Recipe, networks: Networks, labels: Labels) -> None:
        super().__init__()
        for letter, network in networks.items():
            if letter != "D":
                self.add_module(letter, network)
        self.row, self.labels = row, labels
        self.codes = Conditioning(row, dict(self.named_children()), labels)

    def style(self, batch: Batch, guide: Guide, *, second: bool = False) -> Tensor:
        """The style that guides to y_trg, or a second one."""
        given = getattr(batch, guide.inputs[second])
        made = self.codes.style_from_images if guide.reference else self.codes.style_from_latents
        return made(given, batch.y_trg)

    def idle(self, guide: Guide) -> list[nn.Module]:
        """The networks that a guide does not step: gradients pass through, and none stay."""
        return [network for name, network in self.named_children() if name not in guide.steps]

    def translate(self, batch: Batch, guide: Guide, encoded: Encoded | None = None) -> Translation:
        with frozen(*self.idle(guide)):
            encoded = encoded or self.G.encode(batch.x)
            style = self.style(batch, guide)
            fake = self.G.decode(encoded, self.codes.code(style, batch.y_trg))
            return Translation(encoded, style, fake)

    def forward(
        self,
        batch: Batch,
        guides: Sequence[Guide],
        D: nn.Module,
        step: int,
        translations: Sequence[Translation] = (),
    ) -> tuple[Tensor, Terms]:
        """The sum of the guides' losses at a step.

        Translations for each guide may be given, made by the networks as they are.
        """
        loss = batch.x.new_zeros(())
        terms: Terms = {}
        made = translations or [self.translate(batch, guide) for guide in guides]
        for guide, translation in zip(guides, made, strict=True):
            with frozen(D, *self.idle(guide)):
                scene = GeneratorPass(self, batch, guide, D, translation)
                values = {term.name: term.of(scene) for term in self.row.terms}
            loss = loss + _sum(self.row.terms, values, step, self.row.ds_iter)
            terms |= named(guide.name, _detached(values))
        return loss, terms
