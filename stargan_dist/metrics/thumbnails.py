"""Numbers that need no pretrained network, under names of their own. None of them is FID or LPIPS.

- `thumbnail_fd`: the Fréchet distance between Gaussians fitted to thumbnails of 4 × 4 pixels
  (48 numbers in [0, 1]): do colours and coarse layout have the right distribution?
- `diversity_l1`: mean absolute difference, in [-1, 1], between outputs of one source.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from stargan_dist.batch import to_uint8

SIDE = 4


class Thumbnails(nn.Module):
    """uint8 (N, 3, H, H) -> (N, 48): area means, in [0, 1]."""

    num_features = 3 * SIDE**2

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.double() / 255, SIDE).flatten(1)


def frechet(real: Tensor) -> Any:
    """A Fréchet distance that has seen the real images, uint8 (N, 3, H, H).

    Its sums are float64; `update(fakes, real=False)` and `compute()` do the rest.
    """
    metric = FrechetInceptionDistance(feature=Thumbnails(), normalize=False)
    metric.update(real, real=True)
    return metric


def rounded(fakes: Tensor) -> Tensor:
    """What a file of the outputs would hold: 8 bits, on the CPU."""
    return to_uint8(fakes).cpu()


def diversity_l1(fakes: Tensor) -> float:
    """Mean over the pairs of outputs (n, 3, H, H) of one source."""
    pairs = torch.pdist(fakes.flatten(1).double(), p=1)
    return float(pairs.mean() / fakes[0].numel())
