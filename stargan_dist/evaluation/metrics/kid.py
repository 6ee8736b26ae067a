"""Kernel distance (KID, arXiv 1801.01401): unbiased, so it suits small sets."""

from torch import Tensor


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """The paper's: (xᵀy / d + 1)³."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_others(x: Tensor) -> Tensor:
    """The mean of the kernel over pairs of different features."""
    pairs = _kernel(x, x)
    return (pairs.sum() - pairs.diagonal().sum()) / (len(x) * (len(x) - 1))


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy over all pairs of features
    (m, d) and (n, d), at least two each. It may be a little below 0."""
    real, fake = real.double(), fake.double()
    across = _kernel(real, fake).mean()
    return float(_mean_of_others(real) + _mean_of_others(fake) - 2 * across)
