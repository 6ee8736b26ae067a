"""Translation by averaged networks, for grids, samples and metrics alike."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from stargan_dist import checkpoint as checkpoints
from stargan_dist import config as configs
from stargan_dist.checkpoint import EMA, load_networks
from stargan_dist.config import Config
from stargan_dist.labels import of_domains
from stargan_dist.nets.precision import POLICIES
from stargan_dist.nets.v2 import Generator, build_networks

AVERAGED = ("G", "F", "E")


class Translator:
    """Images into domains, guided by latents or by references.

    x: (B, 3, H, H) in [-1, 1]. Guides for n outputs of each source, those of the first source
    first: y_trg (B·n,) int64 with z (B·n, latent_dim) or x_ref (B·n, 3, H, H). The encoder half
    of G runs once a source. Returns (B·n, 3, H, H), about [-1, 1].

    With `bfloat16` G computes in that precision; what goes in and comes out stays as it is.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        config: Config,
        domains: list[str],
        step: int,
        *,
        bfloat16: bool = False,
    ) -> None:
        self.G = cast(Generator, networks["G"])
        self.F, self.E = networks["F"], networks["E"]
        self.networks = {letter: networks[letter] for letter in AVERAGED}
        self.config, self.domains, self.step = config, domains, step
        self.bfloat16 = bfloat16
        # TODO-LEAD: of the recipe and the labels
        self.labels, self.diverse, self.guided_by_references = of_domains(domains), True, True

    @classmethod
    def load(
        cls, run: str, checkpoint: str = "latest", device: str | torch.device = "cpu"
    ) -> "Translator":
        """The averaged networks of a run's checkpoint: `latest`, `best` or a step.

        Raises:
            UserError: the run has none, or not this one.
        """
        found = checkpoints.find_existing(run, checkpoint)
        config = configs.from_dict(found.config)
        built = build_networks(len(found.domains), **configs.to_dict(config)["model"])._asdict()
        networks = {
            letter: built[letter].to(device, POLICIES[config.precision].weights).eval()
            for letter in AVERAGED
        }
        load_networks(networks, found.tensors(EMA))
        return cls(networks, config, found.domains, found.step)

    @property
    def device(self) -> torch.device:
        return next(self.G.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.G.parameters()).dtype

    @torch.no_grad()
    def translate(self, x: Tensor, s: Tensor) -> Tensor:
        """Guided by style codes (B·n, style_dim)."""
        lowered = torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else None
        with lowered or nullcontext():
            encoded = self.G.encode(x).repeat_interleave(len(s) // len(x))
            return self.G.decode(encoded, s).to(self.dtype)

    @torch.no_grad()
    def styles_of_latents(self, z: Tensor, y_trg: Tensor) -> Tensor:
        return self.F(z, y_trg)

    @torch.no_grad()
    def styles_of_references(self, x_ref: Tensor, y_trg: Tensor) -> Tensor:
        return self.E(x_ref, y_trg)

    def from_latents(self, x: Tensor, y_trg: Tensor, z: Tensor) -> Tensor:
        return self.translate(x, self.styles_of_latents(z, y_trg))

    def from_references(self, x: Tensor, y_trg: Tensor, x_ref: Tensor) -> Tensor:
        return self.translate(x, self.styles_of_references(x_ref, y_trg))
