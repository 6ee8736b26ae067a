"""Discriminator of several resolutions (arXiv 1711.11585), as MUNIT and DRIT have it."""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from stargan_dist.nets.blocks import DiscriminatorOutput
from stargan_dist.nets.per_domain import PerDomain
from stargan_dist.nets.precision import Trunk

SCALES = 3  # resolutions
HALVINGS = 4  # of a network
SMALLEST = 2**HALVINGS  # pixels that these need


class PatchNetwork(nn.Module):
    """Scores (B, patches) of overlapping patches of 46 × 46 pixels, without norms.

    Args:
        width: channels of the first layer, which double with each halving.
        max_width: their largest number.
        slope: of LeakyReLU for negative numbers.
    """

    def __init__(self, width: int, max_width: int, slope: float) -> None:
        super().__init__()
        widths = [3, *(min(width * 2**i, max_width) for i in range(HALVINGS))]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 4, 2, 1, padding_mode="reflect"), nn.LeakyReLU(slope)]
        self.trunk = Trunk(*layers)
        self.src = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, x: Tensor, *, double_backward: bool = False) -> Tensor:
        scores: Tensor = self.src(self.trunk(x, double_backward=double_backward))
        return scores.flatten(1)


class MultiScaleDiscriminator(nn.Module):
    """Discriminator D(x, y) -> scores of patches at up to three resolutions, the largest first.

    Each resolution is half of the one before, and has a network for each domain. At 32 px there are
    two, as the four halvings of a network need 16 px.

    Args:
        num_domains: K.
        image_size: in pixels.
        width: see `PatchNetwork`.
        max_width: the same.
        slope: the same.
    """

    def __init__(
        self, num_domains: int, image_size: int, width: int, max_width: int, slope: float
    ) -> None:
        super().__init__()
        scales = min(SCALES, int(math.log2(image_size // SMALLEST)) + 1)
        self.scales = nn.ModuleList(
            PerDomain(num_domains, lambda: PatchNetwork(width, max_width, slope))
            for _ in range(scales)
        )

    def forward(
        self, x: Tensor, y: Tensor, *, double_backward: bool = False
    ) -> DiscriminatorOutput:
        images = [x]
        for _ in range(len(self.scales) - 1):
            images.append(F.avg_pool2d(images[-1], 3, 2, 1, count_include_pad=False))
        src, *coarser = (
            networks(image, y, double_backward=double_backward)
            for networks, image in zip(self.scales, images, strict=True)
        )
        return DiscriminatorOutput(src, coarser=tuple(coarser))
