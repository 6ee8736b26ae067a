"""One iteration of the game: the order in which its two sides meet."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels
from stargan_dist.objectives.loss_modules import (
    DiscriminatorLoss,
    GeneratorLoss,
    Translation,
    named,
    weight_at,
)
from stargan_dist.objectives.recipe import Guide, Networks, Recipe, Terms

Phases = tuple[tuple[Guide, ...], ...]


def exact(guides: tuple[Guide, ...]) -> Phases:
    """The generator side steps for each guide, as published."""
    return tuple((guide,) for guide in guides)


def summed(guides: tuple[Guide, ...]) -> Phases:
    """It steps once, for the sum of the guides' losses."""
    return (guides,)


SCHEDULES = {"exact": exact, "summed": summed}


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


class Objective:
    """What a recipe trains its networks for.

    Args:
        row: of the table, as `recipes.row_of` has it.
        networks: by letter, as `recipes.build_networks` made them.
        labels: of the data; iterations alternate between its sets.
    """

    def __init__(
        self, row: Recipe, networks: Networks, labels: Labels, schedule: str = "exact"
    ) -> None:
        self.row, self.sets = row, len(labels.spaces)
        self.phases = SCHEDULES[schedule](row.guides)
        self.discriminator = DiscriminatorLoss(row, networks, labels)
        self.generator = GeneratorLoss(row, networks, labels)

    @property
    def sides(self) -> dict[str, nn.Module]:
        return {"D": self.discriminator, "G": self.generator}

    def falling_weights(self, step: int) -> dict[str, float]:
        """Weights that a schedule changes, by term."""
        ds_iter = self.row.ds_iter
        return {t.name: weight_at(t, step, ds_iter) for t in self.row.terms if t.falls}

    def generator_steps(self, step: int) -> bool:
        """Whether the generator side steps in an iteration. D always does."""
        return (step // self.sets + 1) % self.row.critic_steps == 0

    def iterate(self, engine: Updater, batches: Sequence[Batch], step: int) -> Terms:
        """One iteration on a batch, given as micro-batches: D by each guide, then the generator
        side by each (or by all at once). For StarGAN v2 that is D by latent, D by reference, G by
        latent, G by reference.

        G, F and E do not change before the first phase of theirs. So the encoder half of G on the
        sources serves all phases up to that, and D's fakes are those of this phase. Of several
        micro-batches only the fakes are kept: graphs of all would take the memory of the whole.
        """
        D, due = self.discriminator.D, self.generator_steps(step)
        keep = due and len(batches) == 1 and engine.keeps_graphs
        made = [self._translate(batch, graphs=keep) for batch in batches]
        terms: Terms = {}
        for guide in self.row.guides:
            calls = [(batch, of[guide].fake) for batch, of in zip(batches, made, strict=True)]
            losses_of, facts = engine.update("D", calls, steps=("D",))
            terms |= named(f"D/{guide.name}", losses_of | facts)
        for guides in self.phases if due else ():
            shared = (
                [made[0][guide] for guide in guides] if keep and guides == self.phases[0] else []
            )
            translations = [(batch, guides, D, step, shared) for batch in batches]
            losses_of, facts = engine.update("G", translations, steps=guides[0].steps)
            terms |= named("G", losses_of)
            terms |= named("G/" + "+".join(guide.name for guide in guides), facts)
        return terms

    def _translate(self, batch: Batch, *, graphs: bool) -> dict[Guide, Translation]:
        """For every guide; with graphs, if they are to be kept, where the next phase needs them."""
        with torch.set_grad_enabled(graphs):
            encoded = self.generator.G.encode(batch.x)
        made = {}
        for guide in self.row.guides:
            with torch.set_grad_enabled(graphs and guide in self.phases[0]):
                made[guide] = self.generator.translate(batch, guide, encoded)
        return made
