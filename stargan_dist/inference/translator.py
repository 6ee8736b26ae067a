"""Translation by averaged networks, shared by grids, samples and metrics."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stargan_dist import config as configs
from stargan_dist.data.labels import Labels
from stargan_dist.nets.networks import generator_networks
from stargan_dist.objectives.recipes import RunSpec, resolve
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import EMA, load_networks


class Translator:
    """Translates images into domains, guided by latents or by references.

    Shapes and ranges:
        x: (B, 3, H, H) in [-1, 1], the sources. Each has n outputs; the encoder half of G runs
            once per source.
        y_trg: (B·n,) int64, or label vectors, float (B·n, labels.vector_dim). The n targets of
            the first source come first. The order is the same for z and x_ref.
        z: (B·n, latent_dim).
        x_ref: (B·n, 3, H, H) in [-1, 1].
        Outputs: (B·n, 3, H, H), approximately in [-1, 1].

    If a recipe conditions G on the label alone, latents have no effect and a reference contributes
    only its domain.

    Args:
        networks: G and, where the recipe has them, F and E, by letter, in evaluation mode.
        spec: the run's resolved configuration.
        labels: the labels that G was trained on.
        step: the training step of the networks.
        bfloat16: run G under bfloat16 autocast. Inputs and outputs keep their dtype.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        spec: RunSpec,
        labels: Labels,
        step: int,
        *,
        bfloat16: bool = False,
    ) -> None:
        recipe, config = spec.recipe, spec.config
        self.networks = dict(networks)
        self.G: Any = networks["G"]
        self.conditioning = recipe.conditioning(self.networks, labels)
        self.conditioning_dim = recipe.conditioning_dim(labels, config.model)
        self.diverse, self.guided_by_references = recipe.is_diverse, recipe.uses_references
        self.config, self.labels, self.step = config, labels, step
        self.bfloat16 = bfloat16

    @property
    def domains(self) -> list[str]:
        """The names of the labels that images are translated to."""
        return self.labels.names

    @classmethod
    def load(
        cls, run: str, checkpoint: str = "latest", device: str | torch.device = "cpu"
    ) -> "Translator":
        """Load the averaged networks of a run.

        Args:
            run: folder or URL of the run.
            checkpoint: `latest`, `best` or a step.

        Raises:
            UserError: the run has no checkpoint, or not this one, or it cannot be read.
        """
        found = checkpoints.find_existing(run, checkpoint)
        spec = resolve(configs.from_dict(found.manifest.config))
        labels = found.manifest.labels
        built = spec.recipe.build_networks(labels, spec.config.model)
        networks = {
            letter: network.to(device, spec.policy.weights).eval()
            for letter, network in generator_networks(built).items()
        }
        load_networks(networks, found.tensors(EMA))
        return cls(networks, spec, labels, found.step)

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return next(self.G.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which inputs are expected and outputs are returned."""
        return next(self.G.parameters()).dtype

    @torch.no_grad()
    def translate(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """Translate sources, given the conditioning of each output.

        Args:
            x: (B, 3, H, H).
            conditioning: (B·n, conditioning_dim), from `condition_on_latents` or
                `condition_on_references`.

        Returns:
            (B·n, 3, H, H)
        """
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else None
        with autocast or nullcontext():
            encoded = self.G.encode(x).repeat_interleave(len(conditioning) // len(x))
            return self.G.decode(encoded, conditioning).to(self.dtype)

    @torch.no_grad()
    def condition_on_latents(self, z: Tensor, y_trg: Tensor) -> Tensor:
        """Return the conditioning (B·n, conditioning_dim) for latents and target labels."""
        style = self.conditioning.style_from_latents(z, y_trg)
        return self.conditioning.vector(style, y_trg)

    @torch.no_grad()
    def condition_on_references(self, x_ref: Tensor, y_trg: Tensor) -> Tensor:
        """Return the conditioning (B·n, conditioning_dim) for references and target labels."""
        style = self.conditioning.style_from_images(x_ref, y_trg)
        return self.conditioning.vector(style, y_trg)

    def from_latents(self, x: Tensor, y_trg: Tensor, z: Tensor) -> Tensor:
        """Translate x (B, 3, H, H) to the labels y_trg with the latents z (B·n, latent_dim)."""
        return self.translate(x, self.condition_on_latents(z, y_trg))

    def from_references(self, x: Tensor, y_trg: Tensor, x_ref: Tensor) -> Tensor:
        """Translate x (B, 3, H, H) to the labels y_trg with the references x_ref (B·n, 3, H, H)."""
        return self.translate(x, self.condition_on_references(x_ref, y_trg))
