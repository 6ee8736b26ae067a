"""StarGAN v2 (arXiv 1912.01865): the losses of its two sides, and one iteration of the two.

A side is a module whose forward computes one whole loss, so that whatever wraps it (DDP, ZeRO)
sees one forward per backward. D is handed to the generator side frozen, as an argument.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stargan_dist import losses
from stargan_dist.batch import Batch
from stargan_dist.config import LossConfig
from stargan_dist.nets.v2 import Encoded, Networks

Terms = dict[str, Tensor]


class Guide(NamedTuple):
    """Where a style code comes from, and which networks the generator side then steps."""

    name: str
    steps: tuple[str, ...]


LATENT = Guide("latent", ("G", "F", "E"))
REFERENCE = Guide("reference", ("G",))

# The steps of the generator side: the guides whose losses each of them adds up.
SCHEDULES: dict[str, tuple[tuple[Guide, ...], ...]] = {
    "exact": ((LATENT,), (REFERENCE,)),
    "summed": ((LATENT, REFERENCE),),
}


class Translation(NamedTuple):
    """A source on its way to the target domain. Phases of one iteration share it."""

    encoded: Encoded  # the half of G that does not depend on the style
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


class DiscriminatorSide(nn.Module):
    """D on real images of their domains and fakes of their targets: Eq. (1) and R1."""

    def __init__(self, networks: Networks, weights: LossConfig) -> None:
        super().__init__()
        self.D = networks.D
        self.weights = weights

    def forward(self, batch: Batch, fake: Tensor) -> tuple[Tensor, Terms]:
        x = batch.x.detach().requires_grad_()
        logits = self.D(x, batch.y, exact=True)  # R1 differentiates them twice
        real = losses.logistic_real(logits)
        reg = losses.r1(logits, x)
        fool = losses.logistic_fake(self.D(fake.detach(), batch.y_trg))
        loss = real + fool + self.weights.reg * reg
        return loss, {"real": real.detach(), "fake": fool.detach(), "reg": reg.detach()}


class GeneratorSide(nn.Module):
    """G, F and E: Eqs. (1) to (4)."""

    def __init__(self, networks: Networks, weights: LossConfig) -> None:
        super().__init__()
        self.G, self.F, self.E = networks.G, networks.F, networks.E
        self.weights = weights

    def style(self, batch: Batch, guide: Guide, *, second: bool = False) -> Tensor:
        """The style code that guides to y_trg, or the second one for the diversity term."""
        if guide == LATENT:  # not `is`: DDP on GPUs hands over a copy
            return self.F(batch.z2 if second else batch.z, batch.y_trg)
        return self.E(batch.x_ref2 if second else batch.x_ref, batch.y_trg)

    def idle(self, guide: Guide) -> list[nn.Module]:
        """The networks that a guide does not step: gradients pass through, and none stay."""
        return [network for name, network in self.named_children() if name not in guide.steps]

    def translate(self, batch: Batch, guide: Guide, encoded: Encoded | None = None) -> Translation:
        with frozen(*self.idle(guide)):
            encoded = encoded or self.G.encode(batch.x)
            style = self.style(batch, guide)
            return Translation(encoded, style, self.G.decode(encoded, style))

    def forward(
        self,
        batch: Batch,
        guides: Sequence[Guide],
        D: nn.Module,
        lambda_ds: float,
        translations: Sequence[Translation] = (),
    ) -> tuple[Tensor, Terms]:
        """The sum of the guides' losses.

        Translations for each guide may be given, made by the networks as they are.
        """
        loss = batch.x.new_zeros(())
        terms: Terms = {}
        made = translations or [self.translate(batch, guide) for guide in guides]
        for guide, translation in zip(guides, made, strict=True):
            guide_loss, guide_terms = self._loss(batch, guide, D, lambda_ds, translation)
            loss = loss + guide_loss
            terms |= named(guide.name, guide_terms)
        return loss, terms

    def _loss(
        self, batch: Batch, guide: Guide, D: nn.Module, lambda_ds: float, translation: Translation
    ) -> tuple[Tensor, Terms]:
        with frozen(D, *self.idle(guide)):
            encoded, style, fake = translation
            with torch.no_grad():
                style2 = self.style(batch, guide, second=True)
                fake2 = self.G.decode(encoded, style2)
            adv = losses.logistic_real(D(fake, batch.y_trg))
            sty = losses.l1(self.E(fake, batch.y_trg), style)
            ds = losses.l1(fake, fake2)
            cyc = losses.l1(self.G(fake, self.E(batch.x, batch.y)), batch.x)
        w = self.weights
        loss = adv + w.sty * sty - lambda_ds * ds + w.cyc * cyc
        terms = {"adv": adv, "sty": sty, "ds": ds, "cyc": cyc}
        return loss, {name: term.detach() for name, term in terms.items()}


class Updater(Protocol):
    """The verb of an engine."""

    @property
    def keeps_graphs(self) -> bool:
        """Whether a graph may begin outside the call whose loss it leads to."""

    def update(
        self, side: str, calls: Sequence[tuple[Any, ...]], steps: tuple[str, ...]
    ) -> tuple[Terms, Terms]:
        """The mean of one side's loss over its calls, backward, and the named networks step.

        Returns the loss's terms, and facts about the steps.
        """


class StarGANv2:
    """The objective: its two sides, and the order in which they meet."""

    def __init__(self, networks: Networks, weights: LossConfig, schedule: str = "exact") -> None:
        self.weights, self.schedule = weights, SCHEDULES[schedule]
        self.discriminator = DiscriminatorSide(networks, weights)
        self.generator = GeneratorSide(networks, weights)

    @property
    def sides(self) -> dict[str, nn.Module]:
        return {"D": self.discriminator, "G": self.generator}

    def lambda_ds(self, step: int) -> float:
        return losses.diversity_weight(step, self.weights.ds, self.weights.ds_iter)

    def iterate(self, engine: Updater, batches: Sequence[Batch], step: int) -> Terms:
        """One iteration on a batch, given as micro-batches: D by latent, D by reference, G by
        latent, G by reference (or the last two summed).

        G, F and E do not change before the third phase. So the encoder half of G on the sources
        serves three phases, and the fakes of the first are those of the third. Of several
        micro-batches only the fakes are kept: graphs of all would take the memory of the whole.
        """
        D, lambda_ds = self.discriminator.D, self.lambda_ds(step)
        keep = len(batches) == 1 and engine.keeps_graphs
        made = [self._translate(batch, graphs=keep) for batch in batches]
        terms: Terms = {}
        for guide in (LATENT, REFERENCE):
            calls = [(batch, of[guide].fake) for batch, of in zip(batches, made, strict=True)]
            losses_of, facts = engine.update("D", calls, steps=("D",))
            terms |= named(f"D/{guide.name}", losses_of | facts)
        for guides in self.schedule:
            shared = [made[0][guide] for guide in guides] if keep and guides[0] == LATENT else []
            translations = [(batch, guides, D, lambda_ds, shared) for batch in batches]
            losses_of, facts = engine.update("G", translations, steps=guides[0].steps)
            terms |= named("G", losses_of)
            terms |= named("G/" + "+".join(guide.name for guide in guides), facts)
        return terms

    def _translate(self, batch: Batch, *, graphs: bool) -> dict[Guide, Translation]:
        """For every guide; with graphs, if they are to be kept, where the next phase needs them."""
        with torch.set_grad_enabled(graphs):
            encoded = self.generator.G.encode(batch.x)
        made = {}
        for guide in (LATENT, REFERENCE):
            with torch.set_grad_enabled(graphs and guide in self.schedule[0]):
                made[guide] = self.generator.translate(batch, guide, encoded)
        return made
