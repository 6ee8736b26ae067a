"""The losses of StarGAN v2 (arXiv 1912.01865, section 2.2; equations in brackets are its own) and
of what it is compared with, as pure functions of tensors."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_real(logits: Tensor) -> Tensor:
    """-log sigmoid(D(x)), averaged: what D loses on real images, and G on fakes. Eq. (1)."""
    return F.softplus(-logits).mean()


def logistic_fake(logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(D(G(x, s)))), averaged: what D loses on fakes. Eq. (1)."""
    return F.softplus(logits).mean()


def r1(logits: Tensor, images: Tensor) -> Tensor:
    """R1 (Mescheder 2018): 0.5 ||d D(x) / d x||^2, summed over a sample, averaged over the batch.

    Args:
        logits: (B,), made from `images`, which require a gradient.
        images: (B, 3, H, H).
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference: style reconstruction (2), diversity (3) and cycle (4)."""
    return (a - b).abs().mean()


def wasserstein_real(scores: Tensor) -> Tensor:
    """-D(x), averaged over images and patches: what the critic loses on real images, and G on
    fakes. StarGAN (arXiv 1711.09020), Eq. (8)."""
    return -scores.mean()


def wasserstein_fake(scores: Tensor) -> Tensor:
    """D(G(x, c)), averaged: what the critic loses on fakes. StarGAN, Eq. (8)."""
    return scores.mean()


def gradient_penalty(
    score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor
) -> Tensor:
    """(||d D(x) / d x|| - 1)^2 at points between real images and fakes, averaged over the batch
    (Gulrajani 2017, arXiv 1704.00028; StarGAN, Eq. (8)). Patches are summed first.

    Args:
        score: the critic, (B, 3, H, H) -> (B,) or (B, patches).
        mix: (B,) in [0, 1], the share of the real image.
    """
    share = mix[:, None, None, None]
    points = (share * real.detach() + (1 - share) * fake.detach()).requires_grad_()
    (gradient,) = torch.autograd.grad(score(points).sum(), points, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def mode_seeking(fake: Tensor, fake2: Tensor, style: Tensor, style2: Tensor) -> Tensor:
    """How much two guides differ for each difference of their images, to be minimised: the
    diversity term of MSGAN (arXiv 1903.05628, Eq. (4)) as its authors' code inverts it.

    For each image, then averaged: a ratio of averages over a rank's share of the batch would
    depend on the number of ranks.
    """
    images = (fake - fake2).abs().flatten(1).mean(1)
    styles = (style - style2).abs().mean(1)
    # 1 / (images / styles + 1e-5), which is 0 where two guides do not differ.
    return (styles / (images + 1e-5 * styles).clamp_min(1e-12)).mean()


def falling(step: int, begin: int, end: int) -> float:
    """1 up to step `begin`, then linearly down to 0 at step `end`."""
    return min(1.0, max(0.0, 1.0 - (step - begin) / (end - begin)))
