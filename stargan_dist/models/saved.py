"""A trained model between files and networks."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stargan_dist.config import Config
from stargan_dist.data.labels import Labels
from stargan_dist.errors import UserError
from stargan_dist.models.landmarks import SavedLandmarks
from stargan_dist.models.tensors import check_shapes, fingerprint
from stargan_dist.nets.networks import DISCRIMINATORS
from stargan_dist.objectives.recipes import RunSpec, resolve
from stargan_dist.runs.checkpoint import tensors_of_network


@dataclass(frozen=True)
class SavedModel:
    """Weights and what builds their networks.

    Attributes:
        origin: where it was read from, for errors and reports.
        config: `recipe` and `model` describe the networks. Of a run, it is the run's whole
            configuration; otherwise other fields have their defaults.
        labels: the labels that it was trained on.
        step: the number of iterations of its training; 0 if it is not known.
        tensors: `LETTER.PARAMETER` of the averaged G and, where the recipe has them, F and E; of D
            and C as well if they were asked for and are there.
        landmarks: the landmark network, if the model has the high-pass option.
    """

    origin: str
    config: Config
    labels: Labels
    step: int
    tensors: dict[str, Tensor]
    landmarks: SavedLandmarks | None = None

    @property
    def spec(self) -> RunSpec:
        """The resolved configuration."""
        return resolve(self.config)

    @property
    def letters(self) -> list[str]:
        """The letters of the networks that `tensors` has."""
        return sorted({name.partition(".")[0] for name in self.tensors})

    def without(self, letter: str) -> "SavedModel":
        """Return the model without the tensors of a network."""
        tensors = {n: t for n, t in self.tensors.items() if not n.startswith(f"{letter}.")}
        return replace(self, tensors=tensors)

    def fingerprint(self) -> str:
        """Return a hash of all weights and, with the high-pass option, of what makes its masks."""
        own = fingerprint(self.tensors)
        return own if self.landmarks is None else f"{own} {self.landmarks.fingerprint()}"

    def check(self) -> "SavedModel":
        """Check names and shapes of all tensors against the networks; return the model.

        Nothing is allocated: a description of enormous networks costs nothing.

        Raises:
            UserError: networks or tensors are missing, left over or of another shape.
        """
        for letter, expected in expected_shapes(self).items():
            tensors = tensors_of_network(letter, self.tensors)
            if letter in DISCRIMINATORS and not tensors:
                continue
            check_shapes(f"{self.origin}: {letter}", tensors, expected)
        unknown = {*self.letters} - expected_shapes(self).keys()
        if unknown:
            raise UserError(
                f"{self.origin}: its recipe has no network {', '.join(sorted(unknown))}"
            )
        return self


def expected_shapes(model: SavedModel) -> dict[str, dict[str, torch.Size]]:
    """Return the shapes of the parameters of all networks, by letter and name."""
    spec = model.spec
    with torch.device("meta"):
        networks = spec.recipe.build_networks(model.labels, spec.config.model)
    return {
        letter: {name: tensor.shape for name, tensor in network.state_dict().items()}
        for letter, network in networks.items()
    }
