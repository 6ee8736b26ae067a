"""Fréchet distance between Gaussians fitted to features (FID, arXiv 1706.08500)."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to features.

    Attributes:
        mean: float64 (d,).
        covariance: float64 (d, d).
        noise: the rounding error of a variance of 0.
    """

    mean: Tensor
    covariance: Tensor
    noise: float

    @cached_property
    def factor(self) -> Tensor:
        """A matrix A (d, rank) with A Aᵀ = covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > self.noise
        return vectors[:, kept] * values[kept].sqrt()


def fit(count: float, total: Tensor, outer: Tensor) -> Gaussian:
    """Fit a Gaussian to features, given their sums.

    Args:
        count: the number of feature vectors, at least two.
        total: their sum (d,).
        outer: the sum of their outer products (d, d).
    """
    mean = total / count
    covariance = (outer - count * torch.outer(mean, mean)) / (count - 1)
    second_moment = outer.trace().item() / count
    noise = torch.finfo(torch.float64).eps * len(mean) * second_moment
    return Gaussian(mean, covariance, noise)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Compute |μa - μb|² + Tr(Σa + Σb - 2 (Σa Σb)^½).

    With Σa = A Aᵀ and Σb = B Bᵀ, the trace of the root is the sum of the singular values of Aᵀ B.
    Unlike the matrix root of Σa Σb, this is exact to rounding for singular covariances, which
    occur where there are fewer images than features.
    """
    root = torch.linalg.svdvals(a.factor.T @ b.factor).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return float(distance - 2 * root)
