"""Statistics of the features of a set of images, from which distances between sets follow.

Memory is bounded for any number of images: float64 sums serve the Fréchet distance, and a bounded
sample of features, evenly spaced over the set, serves the kernel distance.
"""

from functools import cached_property

import torch
from torch import Tensor

from stargan_dist.evaluation.metrics import fid, kid

KERNEL_IMAGES = 2000  # the largest sample of a set


class Statistics:
    """Statistics of the features (N, d) of a set of images.

    Args:
        dim: d.
        total: the number of images in the whole set, over all ranks.
        device: the device of the sums.
    """

    def __init__(self, dim: int, total: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self.stride = max(1, -(-total // KERNEL_IMAGES))
        self.samples: list[Tensor] = []

    def update(self, features: Tensor, first: int) -> None:
        """Add features (n, d) of consecutive images.

        Args:
            first: the number of the first image within the set.
        """
        sample = features[-first % self.stride :: self.stride]
        if len(sample):
            self.samples.append(sample.float().clone())  # a view would keep the batch alive
        features = features.double()
        self.count += len(features)
        self.sum += features.sum(0)
        self.outer.addmm_(features.T, features)

    @property
    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors that are summed over the ranks."""
        return self.count, self.sum, self.outer

    @property
    def sample(self) -> Tensor:
        """The sampled features so far (m, d), float32, on the CPU."""
        dim = len(self.sum)
        return torch.cat([torch.zeros(0, dim), *(sample.cpu() for sample in self.samples)])

    def to_dict(self) -> dict[str, Tensor]:
        """Return the statistics as named tensors on the CPU."""
        names = ("count", "sum", "outer", "sample")
        return {name: getattr(self, name).cpu().contiguous() for name in names}

    @classmethod
    def from_dict(cls, tensors: dict[str, Tensor]) -> "Statistics":
        """Build statistics from the tensors of `to_dict`."""
        statistics = cls(len(tensors["sum"]), int(tensors["count"]))
        statistics.count, statistics.sum = tensors["count"], tensors["sum"]
        statistics.outer, statistics.samples = tensors["outer"], [tensors["sample"]]
        return statistics

    @cached_property
    def gaussian(self) -> fid.Gaussian:
        """The Gaussian fitted to the features, of which there are at least two."""
        return fid.fit(int(self.count), self.sum.cpu(), self.outer.cpu())


def distances(real: Statistics, fake: Statistics) -> tuple[float, float]:
    """Compute the Fréchet and the kernel distance of two sets of at least two images each."""
    frechet = fid.frechet_distance(real.gaussian, fake.gaussian)
    return frechet, kid.kernel_distance(real.sample, fake.sample)
