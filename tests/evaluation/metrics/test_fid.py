import numpy as np
import pytest
import scipy.linalg
import torch

from stargan_dist.evaluation.metrics.fid import frechet_distance
from stargan_dist.evaluation.metrics.statistics import KERNEL_IMAGES, Statistics, distances

DIM = 24


def features(n, seed, dim=DIM):
    """Correlated, off centre, and on scales from 1 to 1e-3."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((dim, dim)) * np.logspace(0, -3, dim)
    return torch.from_numpy(rng.standard_normal((n, dim)) @ mixing + rng.standard_normal(dim))


def statistics(features, shares=1):
    parts = [Statistics(features.shape[1], len(features)) for _ in range(shares)]
    for number in range(len(features)):
        parts[number % shares].update(features[number, None], number)
    whole, *others = parts
    for other in others:
        for mine, theirs in zip(whole.sums, other.sums, strict=True):
            mine.add_(theirs)
    whole.samples = [part.sample for part in parts]
    return whole


def by_scipy(a, b):
    """The formula as FID implementations write it."""
    a, b = a.numpy(), b.numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    difference = a.mean(0) - b.mean(0)
    return difference @ difference + np.trace(cov_a + cov_b - 2 * root)


def by_gram(a, b):
    """Tr (Σa Σb)^½ is the nuclear norm of the centred features' product: no root of a singular
    matrix is taken."""
    a, b = a.numpy(), b.numpy()
    x, y = a - a.mean(0), b - b.mean(0)
    root = np.linalg.norm(x @ y.T, "nuc") / np.sqrt((len(a) - 1) * (len(b) - 1))
    traces = (x**2).sum() / (len(a) - 1) + (y**2).sum() / (len(b) - 1)
    difference = a.mean(0) - b.mean(0)
    return difference @ difference + traces - 2 * root


def frechet(a, b, shares=1):
    return frechet_distance(statistics(a, shares).gaussian, statistics(b, shares).gaussian)


def test_equals_scipy():
    a, b = features(200, 0), features(300, 1)
    assert frechet(a, b) == pytest.approx(by_scipy(a, b), rel=1e-9)


@pytest.mark.parametrize(("m", "n"), [(5, 9), (10, 300), (2, 2)])
def test_fewer_images_than_features(m, n):
    a, b = features(m, 0), features(n, 1)
    assert frechet(a, b) == pytest.approx(by_gram(a, b), rel=1e-9)


def test_a_set_is_at_no_distance_from_itself():
    a = features(10, 0)
    assert abs(frechet(a, a)) < 1e-10


@pytest.mark.parametrize("shares", [2, 3, 7])
def test_shares_add_up(shares):
    a, b = features(31, 0), features(20, 1)
    whole = distances(statistics(a), statistics(b))
    parts = distances(statistics(a, shares), statistics(b, shares))
    assert parts == pytest.approx(whole, rel=1e-10)


def test_memory_is_bounded_and_the_sample_evenly_spaced():
    total = 3 * KERNEL_IMAGES - 1
    made = Statistics(1, total)
    for first in range(0, total, 10):
        made.update(torch.arange(first, min(first + 10, total))[:, None].float(), first)
    held = sum(sample.untyped_storage().nbytes() for sample in made.samples)
    assert held <= 4 * KERNEL_IMAGES
    kept = made.sample[:, 0]
    assert KERNEL_IMAGES * 0.9 < len(kept) <= KERNEL_IMAGES
    assert torch.equal(kept.diff(), torch.full((len(kept) - 1,), 3.0))
