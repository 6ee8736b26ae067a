"""One iteration of the game: the order of the discriminators' and the generator's steps."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels
from stargan_dist.data.order import turn_of
from stargan_dist.nets.blocks import Encoded
from stargan_dist.nets.masks import MaskFunction, no_masks
from stargan_dist.nets.networks import Networks
from stargan_dist.objectives.loss_modules import (
    ContentLoss,
    DiscriminatorLoss,
    GeneratorLoss,
    Translation,
    weight_at,
    with_prefix,
)
from stargan_dist.objectives.pool import FakePool
from stargan_dist.objectives.recipe import Guide, Recipe, Term, Terms
from stargan_dist.objectives.schedules import SCHEDULES, Phases


class Updater(Protocol):
    """The part of an engine (engines/base.py) that an iteration uses."""

    @property
    def keeps_graphs(self) -> bool:
        """A graph may begin outside the call that computes its loss."""

    def update(
        self, module: str, calls: Sequence[tuple[Any, ...]], trains: tuple[str, ...]
    ) -> tuple[Terms, Terms]:
        """Minimise the mean loss of a loss module over its calls by one step of some networks.

        Args:
            module: "D", "G" or "C", see `Objective.loss_modules`.
            calls: arguments of its forward, one tuple per micro-batch.
            trains: letters of the networks that step.

        Returns:
            The terms of the loss, and statistics of the steps.
        """


class Objective:
    """The training objective of a recipe for its networks.

    Args:
        recipe: from `recipes.resolve` or the table.
        networks: by letter, from `Recipe.build_networks`.
        labels: of the data. Iterations alternate between its data sources.
        schedule: a key of SCHEDULES.
        masks: makes the masks of images for the high-pass option of G.

    Attributes:
        pool: earlier fakes that D sees.
    """

    def __init__(
        self,
        recipe: Recipe,
        networks: Networks,
        labels: Labels,
        schedule: str = "published",
        masks: MaskFunction = no_masks,
    ) -> None:
        self.recipe, self.masks = recipe, masks
        self.source_names = [space.name for space in labels.spaces]
        self.schedule = SCHEDULES[schedule]
        self.discriminator = DiscriminatorLoss(recipe, networks, labels)
        self.generator = GeneratorLoss(recipe, networks, labels, masks)
        self.content = ContentLoss(recipe, networks) if recipe.content_discriminator else None
        self.pool = FakePool(recipe.pool_size)

    @property
    def loss_modules(self) -> dict[str, nn.Module]:
        content = {"C": self.content} if self.content else {}
        return {"D": self.discriminator, "G": self.generator, **content}

    @property
    def turns(self) -> Phases:
        """The guides of each turn."""
        return self.schedule.turns(self.recipe.guides)

    @property
    def reference_turns(self) -> list[bool]:
        """Whether the iterations of each turn need references."""
        return [any(guide.reference for guide in guides) for guides in self.turns]

    def guides(self, step: int) -> tuple[Guide, ...]:
        """Return the guides of an iteration."""
        count = self._round(step) // self.recipe.discriminator_steps
        return self.turns[turn_of(count, len(self.turns))]

    def generator_phases(self, step: int) -> Phases:
        """Return the guides of each generator step of an iteration that has some."""
        return self.schedule.generator_phases(self.guides(step))

    def rate_factor(self, letter: str) -> float:
        """Return the factor of a network's learning rate under the schedule."""
        steps_once = letter == "C" or (letter == "D" and self.recipe.discriminator.by_guide)
        return 1.0 if steps_once else self.schedule.rate_factor(letter, self.recipe.guides)

    def decaying_weights(self, step: int) -> dict[str, float]:
        """Return the weights at a step of all terms whose weight decays."""
        ds_iter = self.recipe.ds_iter
        return {
            t.name: weight_at(t, step, ds_iter) for t in self.recipe.generator_terms if t.decays
        }

    def generator_steps(self, step: int) -> bool:
        """Return True if the iteration has generator steps."""
        return (self._round(step) + 1) % self.recipe.discriminator_steps == 0

    def discriminator_steps(self, step: int, letter: str = "D") -> bool:
        """Return True if a discriminator steps in the iteration."""
        return letter in self.recipe.every_iteration or self.generator_steps(step)

    def discriminator_phases(self, step: int) -> Phases:
        """Return the guides of each step of D in an iteration that has some."""
        guides = self.guides(step)
        by_guide = self.recipe.discriminator.by_guide
        return (guides,) if by_guide else self.schedule.discriminator_phases(guides)

    def _round(self, step: int) -> int:
        """Return how often each data source had an iteration before a step."""
        return step // len(self.source_names)

    @property
    def period(self) -> int:
        """A number of iterations of a data source; in any as many, each term is due as often."""
        return self.recipe.discriminator_steps * len(self.turns) * self.schedule.period

    def kind_of_iteration(self, step: int) -> tuple[object, ...]:
        """Return what an iteration computes: guides and terms. One kind needs the same memory."""
        guides = self.generator_phases(step)[0] if self.generator_steps(step) else ()
        due = [self._due_of_discriminator(step), *self._due_of_generator(step, guides)]
        names = tuple(tuple(term.name for term in terms) for terms in due)
        return tuple(guide.name for guide in guides), names

    def _due_of_discriminator(self, step: int) -> list[Term]:
        if not self.discriminator_steps(step):
            return []
        rounds_per_step = (
            1 if "D" in self.recipe.every_iteration else self.recipe.discriminator_steps
        )
        count = self._round(step) // rounds_per_step
        return self.schedule.due(self.recipe.discriminator_terms, count)

    def _due_of_generator(self, step: int, guides: Sequence[Guide]) -> list[list[Term]]:
        """Return the terms of each guide of a generator step."""
        recipe = self.recipe
        # Of each of the guides that take turns, as pairs of iterations have one of each.
        count = self._round(step) // recipe.discriminator_steps // len(self.turns)
        return [
            self.schedule.due(recipe.terms_of(guide), count, recipe.guides.index(guide))
            for guide in guides
        ]

    def iterate(self, engine: Updater, micro_batches: Sequence[Batch], step: int) -> Terms:
        """Run one iteration: D with each of its guides, then the generator with each.

        For StarGAN v2: D by latent, D by reference, G, F and E by latent, G by reference. A
        schedule may have one step for both guides, or one guide an iteration. In some recipes the
        generator steps first; D's fakes are those of before its steps in any case. C, the
        discriminator of contents, steps after D.

        G, F and E do not change before their first step. So the encoder half of G on the sources
        serves all phases up to that step, and D's fakes are the fakes of that step. With several
        micro-batches only the fakes are kept: the graphs of all would take the memory of the whole
        batch. All phases share the masks of the sources too.

        Returns:
            All loss terms and statistics, as `D/latent/real`. With several data sources their
            names include that of the step's source, as `D/label/celeba/real`.
        """
        has_generator_steps = self.generator_steps(step)
        keep = has_generator_steps and len(micro_batches) == 1 and engine.keeps_graphs
        micro_batches = [b._replace(masks=self.masks(b.x)) for b in micro_batches]
        encoded = [self._encode(batch, graphs=keep) for batch in micro_batches]
        guides = self.guides(step) if self.discriminator_steps(step) else ()
        with_graphs = self.generator_phases(step)[0] if keep else ()
        translations = [
            self._translate(batch, guides, of_batch, with_graphs)
            for batch, of_batch in zip(micro_batches, encoded, strict=True)
        ]
        kept = translations[0] if keep else {}
        phases = [
            partial(self._discriminator_phases, engine, micro_batches, translations, step),
            partial(self._content_phase, engine, micro_batches, encoded, step),
            partial(self._generator_phases, engine, micro_batches, kept, step),
        ]
        terms: Terms = {}
        for run in reversed(phases) if self.recipe.generator_first else phases:
            terms |= run()
        return self._with_source_name(terms, step)

    def _discriminator_phases(
        self,
        engine: Updater,
        micro_batches: Sequence[Batch],
        translations: Sequence[Mapping[Guide, Translation]],
        step: int,
    ) -> Terms:
        terms: Terms = {}
        for guides in self.discriminator_phases(step) if self.discriminator_steps(step) else ():
            fakes = [torch.cat([x for g in guides for x in of[g].fakes]) for of in translations]
            fakes = self.pool.exchange(fakes, micro_batches, step)
            terms |= self._step_discriminator(engine, guides, micro_batches, fakes, step)
        return terms

    def _content_phase(
        self,
        engine: Updater,
        micro_batches: Sequence[Batch],
        encoded: Sequence[Encoded],
        step: int,
    ) -> Terms:
        if not (self.content and self.discriminator_steps(step, "C")):
            return {}
        contents = (e.bottleneck.detach() for e in encoded)
        calls = [*zip(micro_batches, contents, strict=True)]
        terms, statistics = engine.update("C", calls, trains=("C",))
        return with_prefix("C", terms | statistics)

    def _generator_phases(
        self,
        engine: Updater,
        micro_batches: Sequence[Batch],
        kept: Mapping[Guide, Translation],
        step: int,
    ) -> Terms:
        terms: Terms = {}
        for guides in self.generator_phases(step) if self.generator_steps(step) else ():
            first = guides == self.generator_phases(step)[0]
            shared = [kept[guide] for guide in guides] if kept and first else []
            terms |= self._step_generator(engine, guides, micro_batches, shared, step)
        return terms

    def _step_discriminator(
        self,
        engine: Updater,
        guides: tuple[Guide, ...],
        micro_batches: Sequence[Batch],
        fakes: Sequence[Tensor],
        step: int,
    ) -> Terms:
        due = self._due_of_discriminator(step)
        calls = [(b, fake, due) for b, fake in zip(micro_batches, fakes, strict=True)]
        terms, statistics = engine.update("D", calls, trains=("D",))
        return with_prefix(f"D/{_names(guides)}", terms | statistics)

    def _step_generator(
        self,
        engine: Updater,
        guides: tuple[Guide, ...],
        micro_batches: Sequence[Batch],
        shared: Sequence[Translation],
        step: int,
    ) -> Terms:
        D, C = self.discriminator.D, self.content and self.content.C
        due = self._due_of_generator(step, guides)
        calls = [(batch, guides, D, step, shared, due, C) for batch in micro_batches]
        terms, statistics = engine.update("G", calls, trains=guides[0].trains)
        return with_prefix("G", terms) | with_prefix(f"G/{_names(guides)}", statistics)

    def _encode(self, batch: Batch, *, graphs: bool) -> Encoded:
        with torch.set_grad_enabled(graphs):
            return self.generator.encode_sources(batch)

    def _translate(
        self,
        batch: Batch,
        guides: Sequence[Guide],
        encoded: Encoded,
        with_graphs: Sequence[Guide],
    ) -> dict[Guide, Translation]:
        """Translate by some guides; with graphs only where the first generator step needs them."""
        translations = {}
        for guide in guides:
            with torch.set_grad_enabled(guide in with_graphs):
                translations[guide] = self.generator.translate(batch, guide, encoded)
        return translations

    def _with_source_name(self, terms: Terms, step: int) -> Terms:
        """With several data sources, insert the name of the step's source before the last part."""
        if len(self.source_names) == 1:
            return terms
        source = self.source_names[step % len(self.source_names)]
        split = {name: name.rpartition("/") for name in terms}
        return {f"{split[name][0]}/{source}/{split[name][2]}": terms[name] for name in terms}


def _names(guides: tuple[Guide, ...]) -> str:
    return "+".join(guide.name for guide in guides)
