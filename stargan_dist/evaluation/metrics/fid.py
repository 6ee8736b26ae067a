"""Fréchet distance between Gaussians fitted to features (FID, arXiv 1706.08500)."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and covariance (d, d) of features, float64; `noise` is what rounding leaves of a
    variance that is 0."""

    mean: Tensor
    covariance: Tensor
    noise: float

    @cached_property
    def factor(self) -> Tensor:
        """A with A Aᵀ = covariance, (d, rank)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        kept = values > self.noise
        return vectors[:, kept] * values[kept].sqrt()


def fit(count: float, total: Tensor, outer: Tensor) -> Gaussian:
    """The Gaussian of `count` features, at least two, from their sum (d,) and the sum of their
    outer products (d, d)."""
    mean = total / count
    covariance = (outer - count * torch.outer(mean, mean)) / (count - 1)
    second_moment = outer.trace().item() / count
    noise = torch.finfo(torch.float64).eps * len(mean) * second_moment
    return Gaussian(mean, covariance, noise)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|μa - μb|² + Tr(Σa + Σb - 2 (Σa Σb)^½).

    With Σa = A Aᵀ and Σb = B Bᵀ the trace of the root is the sum of the singular values of Aᵀ B.
    Unlike a root of Σa Σb it is exact to rounding where the covariances are singular, as those of
    fewer images than features are.
    """
    root = torch.linalg.svdvals(a.factor.T @ b.factor).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    return float(distance - 2 * root)
