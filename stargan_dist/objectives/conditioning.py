"""What G is given: a label, a style, or both."""

import torch
from torch import Tensor

from stargan_dist.data.labels import Labels
from stargan_dist.objectives.recipe import Networks, Recipe


class Conditioning:
    """The codes of one recipe, (B, dim), made by its networks.

    Labels y as they travel: int64 (B,) domains or float (B, size) vectors.
    """

    def __init__(self, row: Recipe, networks: Networks, labels: Labels) -> None:
        self.row, self.networks, self.labels = row, networks, labels

    def style_from_latents(self, z: Tensor, y: Tensor) -> Tensor:
        return self.row.style.of_latents(self.networks, z, y)

    def style_from_images(self, x: Tensor, y: Tensor) -> Tensor:
        return self.row.style.of_images(self.networks, x, y)

    def code(self, style: Tensor, y: Tensor) -> Tensor:
        """What G is given."""
        if not self.row.label:
            return style
        return torch.cat([self.labels.to_vectors(y, style.dtype), style], dim=1)
