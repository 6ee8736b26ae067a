"""Translation by averaged networks, for grids, samples and metrics alike."""

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
    """Images into domains, guided by latents or by references.

    x: (B, 3, H, H) in [-1, 1]. Guides for n outputs of each source, those of the first source
    first: y_trg (B·n,) int64 (or labels, float (B·n, labels.size)) with z (B·n, latent_dim) or
    x_ref (B·n, 3, H, H). The encoder half of G runs once a source. Returns (B·n, 3, H, H), about
    [-1, 1].

    Where G is given a label alone, latents change nothing, and of a reference its domain counts.

    With `bfloat16` G computes in that precision; what goes in and comes out stays as it is.
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
        """The averaged networks of a run's checkpoint: `latest`, `best` or a step.

        Raises:
            UserError: the run has none, or not this one.
        """
        found = checkpoints.find_existing(run, checkpoint)
        spec, labels = resolve(configs.from_dict(found.config)), found.labels
        built = spec.recipe.build_networks(labels, spec.config.model)
        networks = {
            letter: network.to(device, spec.policy.weights).eval()
            for letter, network in generator_networks(built).items()
        }
        load_networks(networks, found.tensors(EMA))
        return cls(networks, spec, labels, found.step)

    @property
    def device(self) -> torch.device:
        return next(self.G.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.G.parameters()).dtype

    @torch.no_grad()
    def translate(self, x: Tensor, codes: Tensor) -> Tensor:
        """Guided by what `codes_of_…` made, (B·n, code_dim)."""
        lowered = torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else None
        with lowered or nullcontext():
            encoded = self.G.encode(x).repeat_interleave(len(codes) // len(x))
            return self.G.decode(encoded, codes).to(self.dtype)

    @torch.no_grad()
    def condition_on_latents(self, z: Tensor, y_trg: Tensor) -> Tensor:
        return self.conditioning.vector(self.conditioning.style_from_latents(z, y_trg), y_trg)

    @torch.no_grad()
    def condition_on_references(self, x_ref: Tensor, y_trg: Tensor) -> Tensor:
        return self.conditioning.vector(self.conditioning.style_from_images(x_ref, y_trg), y_trg)

    def from_latents(self, x: Tensor, y_trg: Tensor, z: Tensor) -> Tensor:
        return self.translate(x, self.condition_on_latents(z, y_trg))

    def from_references(self, x: Tensor, y_trg: Tensor, x_ref: Tensor) -> Tensor:
        return self.translate(x, self.condition_on_references(x_ref, y_trg))
