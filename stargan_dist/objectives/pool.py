"""Earlier fakes that D sees in place of new ones (arXiv 1612.07828, section 2.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stargan_dist.data.batch import Batch
from stargan_dist.data.order import PAIR


class FakePool:
    """Pools of earlier fakes, one for each place in the global batch and each of two domains.

    CycleGAN's batch is one pair, and each of its two D has a pool of 50 fakes: the first 50 are
    stored and shown; each later one is, with probability 1/2, exchanged for a random one of the
    pool. Here each pair of a larger batch has two pools of its own. So at every batch size the
    fakes of a pool are as old, in iterations, as the published ones, whereas 50 fakes for a batch
    of 50 pairs would all be of the previous iteration. A pool belongs to places of the batch, and
    the ranks divide these: a step needs no communication, and the contents do not depend on the
    number of ranks or micro-batches.

    A pool takes 4 · size · 3 · H² bytes: 39 MB for 50 fakes at 256 px, twice that for each pair of
    a process. A checkpoint holds those of all processes.

    Args:
        size: fakes of each pool; 0: D sees the new fakes.

    Attributes:
        images: (b, size, 3, H, H), of the b sources of this process; None before the first
            exchange. Row 2i + d has fakes of domain d, from sources of pair i.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: Tensor | None = None

    @torch.no_grad()
    def exchange(
        self, fakes: Sequence[Tensor], batches: Sequence[Batch], step: int
    ) -> list[Tensor]:
        """Return the fakes that D sees in an iteration, and store the new ones.

        The draws are those of the slots (`Batch.mix`), and the number of stored fakes follows from
        the step: the images are all that a checkpoint needs.

        Args:
            fakes: (b, 3, H, H) of each micro-batch.
            batches: the micro-batches of whole pairs.
            step: the number of earlier exchanges.
        """
        if not self.size:
            return [*fakes]
        y_trg, mix = (torch.cat([getattr(b, name) for b in batches]) for name in ("y_trg", "mix"))
        shown = self._exchange(torch.cat([*fakes]), y_trg, mix, step)
        return [*shown.split([len(fake) for fake in fakes])]

    def _exchange(self, new: Tensor, y_trg: Tensor, mix: Tensor, step: int) -> Tensor:
        images = self.allocate(new)
        rows = torch.arange(len(new), device=new.device) // PAIR * PAIR + y_trg
        if step < self.size:
            images[rows, step] = new
            return new
        # Below 1/2, the draw is uniform over the pool, too.
        place = (mix * 2 * self.size).long().clamp(max=self.size - 1)
        is_exchanged = (mix < 0.5).view(-1, 1, 1, 1)
        stored = images[rows, place]
        images[rows, place] = torch.where(is_exchanged, new, stored)
        return torch.where(is_exchanged, stored, new)

    def allocate(self, like: Tensor) -> Tensor:
        """Return the images of this process, created for its b sources `like` if there are none."""
        if self.images is None:
            self.images = like.new_zeros(len(like), self.size, *like.shape[1:])
        return self.images

    def load(self, images: Tensor, rank: int, world_size: int) -> None:
        """Take a rank's share of the images of a whole batch."""
        self.images = images.chunk(world_size)[rank].clone()
