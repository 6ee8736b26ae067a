"""StarGAN v2 (arXiv 1912.01865): the losses of its two sides, and one iteration of the two.

A side is a module whose forward computes one whole loss, so that whatever wraps it (DDP, ZeRO)
sees one forward per backward. D is handed to the generator side frozen, as an argument.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

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


class Translation(NamedTuple):
    """A source on its way to the target domain. Phases of one iteration share it."""

    encoded: Encoded  # the half of G that does not depend on the style
    style: Tensor
    fake: Tensor


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

    def translate(self, batch: Batch, guide: Guide, encoded: Encoded | None = None) -> Translation:
        encoded = encoded or self.G.encode(batch.x)
        style = self.style(batch, guide)
        return Translation(encoded, style, self.G.decode(encoded, style))

    def forward(
        self,
        batch: Batch,
        guide: Guide,
        D: nn.Module,
        lambda_ds: float,
        translation: Translation | None = None,
    ) -> tuple[Tensor, Terms]:
        """The loss of one guide. A translation made by the networks as they are may be given."""
        idle = [net for name, net in self.named_children() if name not in guide.steps]
        with frozen(D, *idle):
            encoded, style, fake = translation or self.translate(batch, guide)
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
    """The verb of an engine: one loss of one side, backward, and the named networks step."""

    def update(self, side: str, *args: object, steps: tuple[str, ...]) -> Terms: ...


class StarGANv2:
    """The objective: its two sides, and the order in which they meet."""

    def __init__(self, networks: Networks, weights: LossConfig) -> None:
        self.weights = weights
        self.discriminator = DiscriminatorSide(networks, weights)
        self.generator = GeneratorSide(networks, weights)

    @property
    def sides(self) -> dict[str, nn.Module]:
        return {"D": self.discriminator, "G": self.generator}

    def lambda_ds(self, step: int) -> float:
        return losses.diversity_weight(step, self.weights.ds, self.weights.ds_iter)

    def iterate(self, engine: Updater, batch: Batch, step: int) -> Terms:
        """One iteration: D by latent, D by reference, G by latent, G by reference.

        G, F and E do not change before the third phase. So the encoder half of G on the sources
        serves three phases, and the latent-guided fakes of the first are those of the third.
        """
        D, lambda_ds = self.discriminator.D, self.lambda_ds(step)
        latent = self.generator.translate(batch, LATENT)
        with torch.no_grad():
            reference = self.generator.translate(batch, REFERENCE, latent.encoded)
        phases = {
            "D/latent": engine.update("D", batch, latent.fake, steps=("D",)),
            "D/reference": engine.update("D", batch, reference.fake, steps=("D",)),
            "G/latent": engine.update("G", batch, LATENT, D, lambda_ds, latent, steps=LATENT.steps),
            "G/reference": engine.update(
                "G", batch, REFERENCE, D, lambda_ds, steps=REFERENCE.steps
            ),
        }
        return {f"{phase}/{k}": v for phase, terms in phases.items() for k, v in terms.items()}
