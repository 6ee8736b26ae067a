"""Sums over the features of a set of images, from which its distances follow.

Memory does not grow with the set: float64 sums for the Fréchet distance, and a bounded number of
features, evenly spaced over the set, for the kernel distance.
"""

from functools import cached_property

import torch
from torch import Tensor

from stargan_dist.evaluation.metrics import fid, kid

KERNEL_IMAGES = 2000  # of a set, at most


class Statistics:
    """Of the features (N, d) of one set of images.

    Args:
        dim: d.
        total: the number of images in the whole set, over all ranks.
    """

    def __init__(self, dim: int, total: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self.stride = max(1, -(-total // KERNEL_IMAGES))
        self.samples: list[Tensor] = []

    def update(self, features: Tensor, first: int) -> None:
        """Add features (n, d) of images in a row, the first of which has this number in the set."""
        kept = features[-first % self.stride :: self.stride]
        if len(kept):
            self.samples.append(kept.float().clone())  # a view would hold the whole batch
        features = features.double()
        self.count += len(features)
        self.sum += features.sum(0)
        self.outer.addmm_(features.T, features)

    @property
    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """What ranks add up."""
        return self.count, self.sum, self.outer

    @property
    def sample(self) -> Tensor:
        """The features kept so far, on the CPU."""
        dim = len(self.sum)
        return torch.cat([torch.zeros(0, dim), *(kept.cpu() for kept in self.samples)])

    def to_dict(self) -> dict[str, Tensor]:
        names = ("count", "sum", "outer", "sample")
        return {name: getattr(self, name).cpu().contiguous() for name in names}

    @classmethod
    def from_dict(cls, tensors: dict[str, Tensor]) -> "Statistics":
        made = cls(len(tensors["sum"]), int(tensors["count"]))
        made.count, made.sum = tensors["count"], tensors["sum"]
        made.outer, made.samples = tensors["outer"], [tensors["sample"]]
        return made

    @cached_property
    def gaussian(self) -> fid.Gaussian:
        return fid.fit(int(self.count), self.sum.cpu(), self.outer.cpu())


def distances(real: Statistics, fake: Statistics) -> tuple[float, float]:
    """The Fréchet and the kernel distance of two sets, of at least two images each."""
    frechet = fid.frechet_distance(real.gaussian, fake.gaussian)
    return frechet, kid.kernel_distance(real.sample, fake.sample)
