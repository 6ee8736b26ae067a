"""The conditioning of G: a label, a style, or both."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stargan_dist.config import ModelConfig
from stargan_dist.data.labels import Labels
from stargan_dist.nets.networks import Networks

# Given a number of labels or, for G, the length of its conditioning vector.
NetworkBuilder = Callable[[int, ModelConfig], nn.Module]


@dataclass(frozen=True)
class NoStyle:
    """A style of length 0: the label alone conditions G.

    Attributes:
        networks: builders of the networks that produce and predict the style, by letter.
    """

    networks: Mapping[str, NetworkBuilder] = field(default_factory=dict)

    def dim(self, model: ModelConfig) -> int:
        """Return the length of the style."""
        return 0

    def from_latents(self, networks: Networks, z: Tensor, y: Tensor) -> Tensor:
        """Return the styles (B, dim) of latents z (B, latent_dim) for labels y."""
        return z[:, :0]

    def from_images(self, networks: Networks, x: Tensor, y: Tensor) -> Tensor:
        """Return the styles (B, dim) of images x (B, 3, H, H) of labels y."""
        return x.new_zeros(len(x), 0)


class Gaussian(NamedTuple):
    """Normal distributions of styles, each (B, dim)."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return styles (B, dim), given standard normal noise (B, dim)."""
        return self.mean + (self.log_variance / 2).exp() * noise


class LatentStyle(NoStyle):
    """The latent itself. E predicts it from images."""

    def dim(self, model: ModelConfig) -> int:
        return model.latent_dim

    def from_latents(self, networks: Networks, z: Tensor, y: Tensor) -> Tensor:
        return z

    def from_images(self, networks: Networks, x: Tensor, y: Tensor) -> Tensor:
        style: Tensor = networks["E"](x, y)
        return style


class GaussianStyle(LatentStyle):
    """The latent itself. E predicts its distribution from images; the style is the mean."""

    def from_images(self, networks: Networks, x: Tensor, y: Tensor) -> Tensor:
        return self.distribution(networks, x, y).mean

    def distribution(self, networks: Networks, x: Tensor, y: Tensor) -> Gaussian:
        """Return the distributions of the styles of images x (B, 3, H, H) of labels y."""
        return Gaussian(*networks["E"](x, y).chunk(2, 1))


class StyleCode(LatentStyle):
    """A domain's style code, from latents by F and from images by E."""

    def dim(self, model: ModelConfig) -> int:
        return model.style_dim

    def from_latents(self, networks: Networks, z: Tensor, y: Tensor) -> Tensor:
        style: Tensor = networks["F"](z, y)
        return style


class Conditioning:
    """Styles, and the vectors that G is conditioned on, for one recipe and its networks.

    Labels y are int64 (B,) domains or float (B, vector_dim) vectors.

    Args:
        style: the recipe's.
        with_label: G is given the label of the target as well.
    """

    def __init__(
        self, style: NoStyle, networks: Networks, labels: Labels, *, with_label: bool
    ) -> None:
        self.style, self.networks, self.labels = style, networks, labels
        self.with_label = with_label

    def style_from_latents(self, z: Tensor, y: Tensor) -> Tensor:
        return self.style.from_latents(self.networks, z, y)

    def style_from_images(self, x: Tensor, y: Tensor) -> Tensor:
        return self.style.from_images(self.networks, x, y)

    def distribution(self, x: Tensor, y: Tensor) -> Gaussian:
        """Return the distributions of the styles of images, where the recipe has such."""
        assert isinstance(self.style, GaussianStyle)
        return self.style.distribution(self.networks, x, y)

    def vector(self, style: Tensor, y: Tensor) -> Tensor:
        """Return the input of G beside the image, (B, conditioning_dim)."""
        if not self.with_label:
            return style
        return torch.cat([self.labels.to_vectors(y, style.dtype), style], dim=1)
