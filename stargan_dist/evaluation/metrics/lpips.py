"""Perceptual diversity of the outputs of a source (LPIPS, arXiv 1801.03924)."""

import warnings
from collections.abc import Mapping, Sequence

import lpips
import torch
from torch import Tensor, nn


def mean_pairwise_distance(layers: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Mean LPIPS over all pairs of n images, computed from one pass over each image.

    LPIPS normalises features to length 1 over the channels. It is the weighted sum over channels of
    squared differences, averaged over positions and summed over layers. The mean of the squared
    differences over all pairs is twice the variance.

    Args:
        layers: features (S, n, C, H, W) of each layer, for S groups of n images.
        weights: channel weights (C,) of each layer.

    Returns:
        (S,)
    """
    distances = []
    for features, weight in zip(layers, weights, strict=True):
        directions = features / (features.norm(dim=2, keepdim=True) + 1e-10)
        variance = directions.var(dim=1)  # unbiased, (S, C, H, W)
        distances.append(2 * (variance * weight[:, None, None]).sum(1).mean((1, 2)))
    return torch.stack(distances).sum(0)


class Lpips(nn.Module):
    """LPIPS 0.1 with AlexNet: images (S, n, 3, H, H) in [-1, 1] -> mean over pairs (S,).

    Args:
        alexnet: torchvision's state dict. The channel weights come with the package `lpips`.
    """

    def __init__(self, alexnet: Mapping[str, Tensor]) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the package calls deprecated torchvision functions
            self.package = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        names = self.package.net.state_dict()  # slice2.3.weight is features.3.weight
        state = {name: alexnet["features." + name.split(".", 1)[1]] for name in names}
        self.package.net.load_state_dict(state)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        groups, n = images.shape[:2]
        layers = self.package.net(self.package.scaling_layer(images.flatten(0, 1)))
        weights = [lin.model[-1].weight.flatten() for lin in self.package.lins]
        return mean_pairwise_distance([f.unflatten(0, (groups, n)) for f in layers], weights)
