"""Kernel distance (KID, arXiv 1801.01401). It is unbiased, so it suits small datasets."""

from torch import Tensor


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """The paper's polynomial kernel (xᵀy / d + 1)³ of all pairs."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_over_distinct_pairs(x: Tensor) -> Tensor:
    """Mean of the kernel over pairs of different feature vectors."""
    pairs = _kernel(x, x)
    return (pairs.sum() - pairs.diagonal().sum()) / (len(x) * (len(x) - 1))


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Estimate the squared maximum mean discrepancy without bias, over all pairs of features.

    Args:
        real: (m, d) with m at least 2.
        fake: (n, d) with n at least 2.

    Returns:
        The estimate. It may be slightly negative.
    """
    real, fake = real.double(), fake.double()
    across = _kernel(real, fake).mean()
    within = _mean_over_distinct_pairs(real) + _mean_over_distinct_pairs(fake)
    return float(within - 2 * across)
