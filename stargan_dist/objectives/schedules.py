"""What an iteration computes, and when: schedules as rows of a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from stargan_dist.objectives.recipe import Guide, Term

Phases = tuple[tuple[Guide, ...], ...]  # the guides of each step


@dataclass(frozen=True)
class Schedule:
    """A row of the table.

    Attributes:
        description: the schedule in words.
        joint_discriminator: D steps once for the fakes of all guides, with one pass over the real
            images; otherwise once for each guide.
        joint_generator: the other networks step once, for the sum of the guides' losses.
        alternating: the guides take turns (data/order.py): an iteration has the steps of one guide
            alone.
        every: terms that are computed in every k-th of D's iterations, or of a guide's, alone, with
            k times their weight: lazy regularisation (StyleGAN2, arXiv 1912.04958, section 3.1).
            Adam's rates stay, as such a term shares its step with the others. The terms, and the
            guides of a term, are not due at once, so that iterations differ little in their work
            and their gradients.
        scales_rates: a network that steps less often than under `published` steps with as many
            times its rate, as Adam's steps have the length of the rate, whatever the gradient.
    """

    description: str
    joint_discriminator: bool = False
    joint_generator: bool = False
    alternating: bool = False
    every: Mapping[str, int] = field(default_factory=dict)
    scales_rates: bool = False

    @property
    def period(self) -> int:
        """The number of iterations in which every term is computed once or more."""
        return math.lcm(*self.every.values())

    def turns(self, guides: tuple[Guide, ...]) -> Phases:
        """Return the guides of each turn."""
        return _phases(guides, joint=not self.alternating)

    def discriminator_phases(self, guides: tuple[Guide, ...]) -> Phases:
        """Return the guides of each step of D in an iteration with some guides."""
        return _phases(guides, joint=self.joint_discriminator)

    def generator_phases(self, guides: tuple[Guide, ...]) -> Phases:
        """Return the guides of each step of the other networks in an iteration with some guides."""
        return _phases(guides, joint=self.joint_generator)

    def rate_factor(self, letter: str, guides: tuple[Guide, ...]) -> float:
        """Return the factor of a network's learning rate."""
        if not self.scales_rates:
            return 1.0
        ours, published = (row.mean_steps(letter, guides) for row in (self, PUBLISHED))
        return published / ours

    def mean_steps(self, letter: str, guides: tuple[Guide, ...]) -> float:
        """Return the mean number of a network's steps in an iteration, over all turns."""
        turns = self.turns(guides)
        phases_of = self.discriminator_phases if letter == "D" else self.generator_phases
        phases = [phase for turn in turns for phase in phases_of(turn)]
        return sum(letter == "D" or letter in phase[0].trains for phase in phases) / len(turns)

    def due(self, terms: Sequence[Term], iteration: int, guide: int = 0) -> list[Term]:
        """Return the terms of an iteration, with their weights in it.

        Args:
            terms: of a loss.
            iteration: the number of earlier iterations in which D stepped, for a term of D; or in
                which the generator stepped with the guide.
            guide: the position of the guide in the recipe.
        """
        counts = {name: iteration + 1 + guide + i for i, name in enumerate(self.every)}
        periods = [self.every.get(term.name, 1) for term in terms]
        return [
            term._replace(weight=term.weight * period)
            for term, period in zip(terms, periods, strict=True)
            if counts.get(term.name, 0) % period == 0 and (term.weight or not term.optional)
        ]


def _phases(guides: tuple[Guide, ...], *, joint: bool) -> Phases:
    return (guides,) if joint else tuple((guide,) for guide in guides)


PUBLISHED = Schedule("a step of D and of the generator for each guide")
JOINT = Schedule(
    "D and the generator step once for all guides, at rates to match",
    joint_discriminator=True,
    joint_generator=True,
    scales_rates=True,
)
SCHEDULES = {
    "published": PUBLISHED,
    "summed": Schedule("the generator steps once for all guides", joint_generator=True),
    "lazy": Schedule("published, with R1 in every 8th iteration", every={"reg": 8}),
    "joint": JOINT,
    "joint_lazy": replace(
        JOINT, description="joint, with R1 in every 8th iteration", every={"reg": 8}
    ),
    "sparse": replace(
        JOINT,
        description="joint_lazy, with diversity and cycle consistency in every 2nd iteration",
        every={"reg": 8, "ds": 2, "cyc": 2},
    ),
    "fast": Schedule(
        "one step of D and of the generator, the guides in turn, at rates to match; R1 in every "
        "8th iteration, diversity and cycle consistency in every 3rd of a guide",
        alternating=True,
        every={"reg": 8, "ds": 3, "cyc": 3},
        scales_rates=True,
    ),
}
