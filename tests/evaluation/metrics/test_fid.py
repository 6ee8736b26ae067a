import numpy as np
import pytest
import scipy.linalg
import torch

from stargan_dist.evaluation.metrics.fid import frechet_distance
from stargan_dist.evaluation.metrics.statistics import KERNEL_IMAGES, Statistics, distances

DIM = 24


def features(n, seed, dim=DIM):
    """Draw features that are correlated, off centre, and on scales from 1 to 1e-3."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dim, dim)) * np.logspace(0, -3, dim)
    return torch.from_numpy(rng.standard_normal((n, dim)) @ mixing + rng.standard_normal(dim))


def statistics(features, shares=1):
    """Compute the statistics of features in several shares, and combine them."""
    partial = [Statistics(features.shape[1], len(features)) for _ in range(shares)]
    for number in range(len(features)):
        partial[number % shares].update(features[number, None], number)
    combined, *rest = partial
    for share in rest:
        for total, addend in zip(combined.sums, share.sums, strict=True):
            total.add_(addend)
    combined.samples = [share.sample for share in partial]
    return combined


def frechet_by_scipy(a, b):
    """Compute the formula as FID implementations do, with scipy's matrix root."""
    a, b = a.numpy(), b.numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    difference = a.mean(0) - b.mean(0)
    return difference @ difference + np.trace(cov_a + cov_b - 2 * root)


def frechet_by_gram(a, b):
    """Compute Tr (Σa Σb)^½ as the nuclear norm of the product of the centred features.

    This takes no root of a singular matrix.
    """
    a, b = a.numpy(), b.numpy()
    x, y = a - a.mean(0), b - b.mean(0)
    root = np.linalg.norm(x @ y.T, "nuc") / np.sqrt((len(a) - 1) * (len(b) - 1))
    traces = (x**2).sum() / (len(a) - 1) + (y**2).sum() / (len(b) - 1)
    difference = a.mean(0) - b.mean(0)
    return difference @ difference + traces - 2 * root


def frechet(a, b, shares=1):
    return frechet_distance(statistics(a, shares).gaussian, statistics(b, shares).gaussian)


def test_the_frechet_distance_equals_scipys():
    a, b = features(200, 0), features(300, 1)
    assert frechet(a, b) == pytest.approx(frechet_by_scipy(a, b), rel=1e-9)


@pytest.mark.parametrize(("m", "n"), [(5, 9), (10, 300), (2, 2)])
def test_the_frechet_distance_is_exact_for_fewer_images_than_features(m, n):
    a, b = features(m, 0), features(n, 1)
    assert frechet(a, b) == pytest.approx(frechet_by_gram(a, b), rel=1e-9)


def test_the_distance_of_a_set_from_itself_is_zero():
    a = features(10, 0)
    assert abs(frechet(a, a)) < 1e-10


@pytest.mark.parametrize("shares", [2, 3, 7])
def test_combined_shares_have_the_distances_of_the_whole_set(shares):
    a, b = features(31, 0), features(20, 1)
    whole = distances(statistics(a), statistics(b))
    combined = distances(statistics(a, shares), statistics(b, shares))
    assert combined == pytest.approx(whole, rel=1e-10)


def test_the_sample_is_bounded_and_evenly_spaced():
    total = 3 * KERNEL_IMAGES - 1
    computed = Statistics(1, total)
    for first in range(0, total, 10):
        computed.update(torch.arange(first, min(first + 10, total))[:, None].float(), first)
    sample_bytes = sum(sample.untyped_storage().nbytes() for sample in computed.samples)
    assert sample_bytes <= 4 * KERNEL_IMAGES
    sample = computed.sample[:, 0]
    assert KERNEL_IMAGES * 0.9 < len(sample) <= KERNEL_IMAGES
    assert torch.equal(sample.diff(), torch.full((len(sample) - 1,), 3.0))
