"""Translation of tensors by averaged networks, shared by grids, samples, metrics and tools."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stargan_dist.data.labels import Labels
from stargan_dist.errors import UserError
from stargan_dist.models.opening import open_model
from stargan_dist.models.saved import SavedModel
from stargan_dist.nets.blocks import Encoded
from stargan_dist.nets.masks import MaskFunction, no_masks
from stargan_dist.nets.networks import generator_networks
from stargan_dist.objectives.recipes import RunSpec
from stargan_dist.runs.checkpoint import load_networks


class TrainedModel:
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
        masks: makes the masks of sources for the high-pass option.
        bfloat16: run G under bfloat16 autocast. Inputs and outputs keep their dtype.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        spec: RunSpec,
        labels: Labels,
        step: int,
        *,
        masks: MaskFunction = no_masks,
        bfloat16: bool = False,
    ) -> None:
        recipe, config = spec.recipe, spec.config
        self.networks = dict(networks)
        self.G: Any = networks["G"]
        self.conditioning = recipe.conditioning(self.networks, labels)
        self.conditioning_dim = recipe.conditioning_dim(labels, config.model)
        self.style_dim = recipe.style.dim(config.model)
        self.diverse = recipe.is_diverse
        self.guided_by_references = recipe.guided_by_references
        self.config, self.labels, self.step = config, labels, step
        self.masks, self.bfloat16 = masks, bfloat16

    @property
    def domains(self) -> list[str]:
        """The names of the labels that images are translated to."""
        return self.labels.names

    @classmethod
    def load(
        cls, run: str, checkpoint: str = "latest", device: str | torch.device = "cpu"
    ) -> "TrainedModel":
        """Load the averaged networks of a run, or of anything else that `open_model` reads.

        Args:
            run: folder or URL.
            checkpoint: of a run: `latest`, `best` or a step.

        Raises:
            UserError: there is no such model, or it cannot be read.
        """
        return cls.from_saved(open_model(run, checkpoint), device)

    @classmethod
    def from_saved(
        cls, saved: SavedModel, device: str | torch.device = "cpu", *, bfloat16: bool = False
    ) -> "TrainedModel":
        """Build the networks of a saved model. They compute in float64 if its weights are.

        Raises:
            UserError: the model has the high-pass option and no landmark network.
        """
        spec = saved.spec
        if spec.config.model.w_hpf and not saved.landmarks:
            raise UserError(
                f"{saved.origin} has the high-pass option (model.w_hpf), whose masks come from a "
                "landmark network, and has none: name one (--landmarks FILE, landmarks=FILE)"
            )
        is_double = any(tensor.dtype == torch.float64 for tensor in saved.tensors.values())
        dtype = torch.float64 if is_double else torch.float32
        built = spec.recipe.build_networks(saved.labels, spec.config.model)
        networks = generator_networks(built)
        for network in networks.values():
            network.to(device, dtype).eval()
        load_networks(networks, saved.tensors)
        masks = saved.landmarks.masks(device, dtype) if saved.landmarks else no_masks
        return cls(networks, spec, saved.labels, saved.step, masks=masks, bfloat16=bfloat16)

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
        return self.decode(self.encode(x), conditioning)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Encoded:
        """Compute the half of G that depends on the sources alone, x (B, 3, H, H)."""
        masks = self.masks(x)
        with self._autocast():
            encoded: Encoded = self.G.encode(x, masks)
            return encoded

    @torch.no_grad()
    def decode(self, encoded: Encoded, conditioning: Tensor) -> Tensor:
        """Compute the outputs (B·n, 3, H, H) of B encoded sources. See `translate`."""
        repeats = len(conditioning) // len(encoded.bottleneck)
        with self._autocast():
            output: Tensor = self.G.decode(encoded.repeat_interleave(repeats), conditioning)
            return output.to(self.dtype)

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

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
