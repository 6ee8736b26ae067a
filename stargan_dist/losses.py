"""The losses of StarGAN v2 (arXiv 1912.01865, section 2.2), as pure functions of tensors."""

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


def diversity_weight(step: int, initial: float, ds_iter: int) -> float:
    """λ_ds at a step: falls linearly from `initial` at step 0 to 0 at step `ds_iter`."""
    return initial * max(0.0, 1.0 - step / ds_iter)
