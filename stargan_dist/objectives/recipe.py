"""What a recipe is made of. The recipes themselves are rows of a table: recipes.py."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from stargan_dist.config import ModelConfig, OptimConfig
from stargan_dist.data.labels import Labels

Terms = dict[str, Tensor]
Networks = Mapping[str, nn.Module]  # by the papers' letters: G, F, E, D


class DiscriminatorOutput(NamedTuple):
    """What a critic says of images: real or fake, (B,) or (B, patches), and which labels they
    have, (B, known), if it was asked."""

    src: Tensor
    cls: Tensor | None = None


class Critic(NamedTuple):
    """A form of D, and how it is asked.

    Attributes:
        network: builds it for so many labels.
        ask: (D, x, y, exact) -> Judgement of images x as being of labels y.
        by_domain: it has an output for each domain, so labels must be domains.
    """

    network: Callable[[int, ModelConfig], nn.Module]
    ask: Callable[..., DiscriminatorOutput]
    by_domain: bool


class Style(NamedTuple):
    """What G is given beside a label, or instead of one; (B, dim).

    Attributes:
        dim: its length.
        networks: builds those that make it and read it, by letter, for so many labels.
        of_latents: (networks, z, y) -> style.
        of_images: (networks, x, y) -> style.
    """

    dim: Callable[[ModelConfig], int]
    networks: Mapping[str, Callable[[int, ModelConfig], nn.Module]]
    of_latents: Callable[[Networks, Tensor, Tensor], Tensor]
    of_images: Callable[[Networks, Tensor, Tensor], Tensor]


class Guide(NamedTuple):
    """Where a style comes from, and which networks the generator side then steps.

    Attributes:
        inputs: fields of the batch, of the style and of a second one.
        reference: these are images of the target's domain; else latents.
    """

    name: str
    steps: tuple[str, ...]
    inputs: tuple[str, str] = ("z", "z2")
    reference: bool = False


class Term(NamedTuple):
    """A term of a loss.

    Attributes:
        of: a pure function of what the side has made (sides.py: Inspection of D, Scene of G).
        weight: `loss.NAME` of a configuration comes before it.
        maximised: it is subtracted.
        falls: its weight falls linearly to 0 at step `loss.ds_iter`.
    """

    name: str
    of: Callable[[Any], Tensor]
    weight: float = 1.0
    maximised: bool = False
    falls: bool = False


@dataclass(frozen=True)
class Recipe:
    """A row of the table.

    Attributes:
        about: the row in words.
        generator: builds G, given the length of what guides it.
        critic: the form of D.
        label: G is given the target's label.
        style: what else it is given.
        critic_terms: of D's loss, in the order in which they are computed.
        terms: of the generator side's.
        guides: each has D step once and the generator side once (or once for all: `schedule`).
        critic_steps: so many iterations have one in which the generator side steps.
        crops: the share of images of which training sees a random part.
        permuted: target labels are those of the batch, permuted; else drawn, evenly over domains.
        max_width: of the networks.
        optim: `optim.*` of a configuration comes before it.
    """

    about: str
    generator: Callable[[int, ModelConfig], nn.Module]
    critic: Critic
    label: bool
    style: Style
    discriminator_terms: tuple[Term, ...]
    terms: tuple[Term, ...]
    guides: tuple[Guide, ...]
    optim: OptimConfig
    critic_steps: int = 1
    crops: float = 0.5
    permuted: bool = False
    max_width: int = 512
    ds_iter: int = 100_000

    def conditioning_dim(self, labels: Labels, model: ModelConfig) -> int:
        """The length of what G is given."""
        return (labels.vector_dim if self.label else 0) + self.style.dim(model)

    @property
    def references(self) -> bool:
        """Whether a batch holds reference images."""
        return any(guide.reference for guide in self.guides)

    @property
    def diverse(self) -> bool:
        """Whether G is given more than a label, so that its outputs may differ."""
        return bool(self.style.networks)

    @property
    def takes_labels(self) -> bool:
        """Whether labels may be other than the domains of a single set: F and some critics have
        an output for each domain, and targets that are drawn are domains."""
        return self.permuted and not (self.critic.by_domain or "F" in self.style.networks)

    def __post_init__(self) -> None:
        assert not any(term.falls for term in self.discriminator_terms), "of D no weight falls"
