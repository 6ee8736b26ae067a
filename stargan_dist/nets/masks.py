"""Masks of the high-pass option: where G keeps the outline of its source, from landmarks.

A table of parts says what becomes of the heat maps of landmarks; `WFLW` is that of the published
model (StarGAN v2, arXiv 1912.01865, appendix A).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stargan_dist.nets.fan import FAN

THRESHOLD = 0.1  # heat below it is none
EPSILON = 1e-6
MaskFunction = Callable[[Tensor], Tensor | None]  # of images (B, 3, H, H)


@dataclass(frozen=True)
class Move:
    """A heat map moved down by `rows` of the network's input, then raised to `power`.

    It wraps around the edge. A power above 1 narrows the spot.
    """

    rows: int = 0
    power: int = 1


@dataclass(frozen=True)
class Part:
    """A part of a face.

    Attributes:
        landmarks: numbers of its heat maps.
        moves: the part is the sum of its heat maps, moved in each of these ways.
        inner: it is in the second mask too.
    """

    landmarks: tuple[int, ...]
    moves: tuple[Move, ...] = (Move(),)
    inner: bool = True


def _range(first: int, last: int, *, without: tuple[int, ...] = ()) -> tuple[int, ...]:
    return tuple(i for i in range(first, last + 1) if i not in without)


# The 98 landmarks of WFLW (arXiv 1805.10483) at 256 px. Those that no part has are not used: the
# ends of the jaw line, the outer corners of the brows and the corners of the mouth.
WFLW = (
    Part(_range(8, 24), (Move(0, 3),), inner=False),  # chin
    Part(_range(33, 50, without=(33, 46)), (Move(7, 2),), inner=False),  # brows
    Part((51,)),  # top of the nose ridge
    Part(_range(52, 54), (Move(-4, 1),)),  # nose ridge
    Part(_range(55, 59), (Move(-8, 4),)),  # nostrils
    Part(_range(60, 75), (Move(8, 3), Move(24, 1))),  # eyes
    Part(_range(77, 81), (Move(8, 4),), inner=False),  # upper lip
    Part(_range(83, 87), (Move(-8, 4),), inner=False),  # lower lip
    Part(_range(88, 95), (Move(2, 3),), inner=False),  # inner lips
    Part((96, 97)),  # pupils
)


def masks_of(heat_maps: Tensor, parts: Sequence[Part], size: int) -> Tensor:
    """Return masks (B, 2, size, size) in [0, 1] from heat maps (B, L, h, h).

    The first mask has all parts and is used at 32 px, the second has the inner ones alone and is
    used at 64 and 128 px.
    """
    maps = F.interpolate(heat_maps, size=(size, size), mode="bilinear", align_corners=True)
    maps = torch.where(maps < THRESHOLD, 0, maps)
    lowest, highest = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    maps = (maps - lowest) / (highest - lowest + EPSILON)
    # shape[0], as len() would fix the batch of exported graphs.
    all_parts, inner = maps.new_zeros(2, maps.shape[0], size, size)
    for part in parts:
        of_part = maps[:, list(part.landmarks)]
        heat = sum(of_part.roll(move.rows, 2).pow(move.power).sum(1) for move in part.moves)
        all_parts = all_parts + heat
        inner = inner + heat if part.inner else inner
    return torch.stack([all_parts, inner], 1).clamp(0, 1)


@dataclass(frozen=True)
class LandmarkMasks:
    """Masks of images by a landmark network in evaluation mode. Not a module: it is not trained.

    Args:
        network: the landmark network.
        parts: table of the parts.
    """

    network: FAN
    parts: tuple[Part, ...] = WFLW

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return masks (B, 2, S, S) of images (B, 3, H, H) in [-1, 1]; S is the network's input."""
        dtype = next(self.network.parameters()).dtype
        heat_maps = self.network(x.to(dtype))
        return masks_of(heat_maps, self.parts, self.network.input_size).to(x.dtype)


def no_masks(_x: Tensor) -> None:
    """Return nothing: the masks of a generator without the high-pass option."""
