"""Heat maps of known landmarks, and losses between heat maps."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stargan_dist.nets.fan import STRIDE

# Constants of the adaptive wing loss (arXiv 1904.07399, section 4.3).
ALPHA, OMEGA, EPSILON, THETA = 2.1, 14.0, 1.0, 0.5


def gaussians(points: Tensor, size: int, sigma: float) -> Tensor:
    """Return heat maps (B, L, h, h) of landmarks (B, L, 2) in pixels of an image of `size` pixels.

    A map is exp(-d²/(2 sigma²)), d the distance from its landmark in pixels of the map, h = size/4.
    """
    centres = torch.arange(size // STRIDE, device=points.device, dtype=points.dtype) + 0.5
    x, y = (points / STRIDE)[..., None].unbind(2)
    columns, rows = (torch.exp(-(centres - at).square() / (2 * sigma**2)) for at in (x, y))
    return rows[..., :, None] * columns[..., None, :]


def adaptive_wing(predicted: Tensor, target: Tensor) -> Tensor:
    """Adaptive wing loss, mean over all elements (arXiv 1904.07399, equations 3 and 4).

    For targets near 1 it has a steep gradient at small errors, for those near 0 that of the mean
    squared error.
    """
    error, power = (predicted - target).abs(), ALPHA - target
    ratio = (THETA / EPSILON) ** power
    slope = OMEGA * power * (THETA / EPSILON) ** (power - 1) / (EPSILON * (1 + ratio))
    offset = THETA * slope - OMEGA * torch.log1p(ratio)
    small = OMEGA * torch.log1p((error / EPSILON) ** power)
    return torch.where(error < THETA, small, slope * error - offset).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "adaptive-wing": adaptive_wing,
    "mse": F.mse_loss,
}
