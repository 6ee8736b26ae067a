"""Losses of StarGAN v2 and of the methods beside it, as pure functions of tensors.

Equation numbers are those of StarGAN v2 (arXiv 1912.01865, section 2.2) unless stated otherwise.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_real(logits: Tensor) -> Tensor:
    """Mean of -log sigmoid(D(x)): D's loss on real images, and G's on fakes. Eq. (1)."""
    return F.softplus(-logits).mean()


def logistic_fake(logits: Tensor) -> Tensor:
    """Mean of -log(1 - sigmoid(D(G(x, s)))): D's loss on fakes. Eq. (1)."""
    return F.softplus(logits).mean()


def r1(logits: Tensor, images: Tensor) -> Tensor:
    """R1 (Mescheder 2018): 0.5 ||d D(x) / d x||^2, summed over a sample, averaged over the batch.

    Args:
        logits: (B,), computed from `images`, which require a gradient.
        images: (B, 3, H, H).
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference: style reconstruction (2), diversity (3), cycle (4), identity."""
    return (a - b).abs().mean()


def wasserstein_real(scores: Tensor) -> Tensor:
    """Mean of -D(x) over images and patches: D's loss on real images, and G's on fakes.

    StarGAN (arXiv 1711.09020), Eq. (8).
    """
    return -scores.mean()


def wasserstein_fake(scores: Tensor) -> Tensor:
    """Mean of D(G(x, c)) over images and patches: D's loss on fakes. StarGAN, Eq. (8)."""
    return scores.mean()


def least_squares_real(scores: Tensor) -> Tensor:
    """Mean of (D(x) - 1)^2 over images and patches: D's loss on real images, and G's on fakes.

    LSGAN (arXiv 1611.04076); CycleGAN (arXiv 1703.10593), section 4.
    """
    return (scores - 1).square().mean()


def least_squares_fake(scores: Tensor) -> Tensor:
    """Mean of D(G(x))^2 over images and patches: D's loss on fakes. LSGAN."""
    return scores.square().mean()


def logistic_undecided(logits: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(C(c)) and 1/2: G's loss against C, least where C is undecided.

    DRIT (arXiv 1808.00948), Eq. (2), in the form of its authors' program.

    Args:
        logits: (B, patches).
    """
    return (logistic_real(logits) + logistic_fake(logits)) / 2


def logistic_domains(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the domain of contents, 0 or 1: C's loss. DRIT, Eq. (2).

    Args:
        logits: (B, patches), of domain 1.
        y: (B,) int64.
    """
    return F.binary_cross_entropy_with_logits(logits, y[:, None].expand_as(logits).to(logits.dtype))


def kl_from_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of normal distributions (B, n) from N(0, I): summed over n, averaged over B.

    DRIT, section 3.3; Kingma and Welling (arXiv 1312.6114), appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


def mean_square(features: Tensor) -> Tensor:
    """Mean square of all elements: an L2 penalty on contents."""
    return features.square().mean()


def gradient_penalty(
    score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor
) -> Tensor:
    """Mean of (||d D(x) / d x|| - 1)^2 at points between real images and fakes.

    Gulrajani 2017 (arXiv 1704.00028); StarGAN, Eq. (8). Scores of patches are summed.

    Args:
        score: D, (B, 3, H, H) -> (B,) or (B, patches).
        real: (B, 3, H, H).
        fake: (B, 3, H, H).
        mix: (B,) in [0, 1], the weight of the real image.
    """
    share = mix[:, None, None, None]
    points = (share * real.detach() + (1 - share) * fake.detach()).requires_grad_()
    (gradient,) = torch.autograd.grad(score(points).sum(), points, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def mode_seeking(fake: Tensor, fake2: Tensor, style: Tensor, style2: Tensor) -> Tensor:
    """Distance of two styles per distance of their images, to be minimised.

    The diversity term of MSGAN (arXiv 1903.05628, Eq. (4)), inverted as in its authors' code. The
    ratio is computed per image and then averaged: a ratio of averages over a rank's share of the
    batch would depend on the number of ranks.

    Args:
        fake: (B, 3, H, H).
        fake2: the same sources with the second style.
        style: (B, style dim).
        style2: (B, style dim).
    """
    images = (fake - fake2).abs().flatten(1).mean(1)
    styles = (style - style2).abs().mean(1)
    # 1 / (images / styles + 1e-5), which is 0 where the two styles are equal.
    return (styles / (images + 1e-5 * styles).clamp_min(1e-12)).mean()


def linear_decay(step: int, begin: int, end: int) -> float:
    """Return 1 up to step `begin`, decreasing linearly to 0 at step `end`."""
    return min(1.0, max(0.0, 1.0 - (step - begin) / (end - begin)))
