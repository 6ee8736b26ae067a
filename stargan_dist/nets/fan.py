"""Landmark network of the high-pass option: heat maps of the landmarks of a face.

The first hourglass of the face alignment network of Wang et al. 2019 (Adaptive wing loss for robust
face alignment, arXiv 1904.07399), with coordinates as further channels (CoordConv,
arXiv 1807.03247). The names of its parameters are those of the published weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTH = 4  # halvings inside the hourglass
STRIDE = 4  # pixels of the input per pixel of a heat map


def coordinates(x: Tensor) -> Tensor:
    """Return three channels for x (B, C, H, W): row, column, and distance from the centre.

    Rows and columns are in [-1, 1]; the largest distance is 1.
    """
    height, width = x.shape[2:]
    rows, columns = (torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype)
                     for n in (height, width))  # fmt: skip
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    distance = grid.square().sum(0).sqrt()
    return torch.cat([grid, (distance / distance.max())[None]]).expand(x.shape[0], -1, -1, -1)


class CoordConv(nn.Module):
    """Convolution of features with their coordinates."""

    def __init__(self, dim_in: int, dim_out: int, **options: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in + 3, dim_out, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.cat([x, coordinates(x)], dim=1))
        return out


class Block(nn.Module):
    """Residual block whose three convolutions contribute 1/2, 1/4 and 1/4 of the channels."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        half, quarter = dim_out // 2, dim_out // 4
        self.bn1, self.conv1 = nn.BatchNorm2d(dim_in), _conv3x3(dim_in, half)
        self.bn2, self.conv2 = nn.BatchNorm2d(half), _conv3x3(half, quarter)
        self.bn3, self.conv3 = nn.BatchNorm2d(quarter), _conv3x3(quarter, quarter)
        self.downsample = None if dim_in == dim_out else nn.Sequential(
            nn.BatchNorm2d(dim_in), nn.ReLU(), nn.Conv2d(dim_in, dim_out, 1, bias=False)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(F.relu(self.bn1(x)))
        b = self.conv2(F.relu(self.bn2(a)))
        c = self.conv3(F.relu(self.bn3(b)))
        return torch.cat([a, b, c], 1) + (x if self.downsample is None else self.downsample(x))


def _conv3x3(dim_in: int, dim_out: int) -> nn.Conv2d:
    return nn.Conv2d(dim_in, dim_out, 3, padding=1, bias=False)


class Hourglass(nn.Module):
    """Features at sizes halved up to `DEPTH` times, added at the full size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.coordconv = CoordConv(width, width, kernel_size=1)
        for level in range(DEPTH, 0, -1):
            for branch in (1, 2, 3):
                self.add_module(f"b{branch}_{level}", Block(width, width))
        self.b2_plus_1 = Block(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self._level(DEPTH, self.coordconv(x))

    def _level(self, level: int, x: Tensor) -> Tensor:
        up, down, out = (self.get_submodule(f"b{branch}_{level}") for branch in (1, 2, 3))
        low = down(F.avg_pool2d(x, 2))
        low = self._level(level - 1, low) if level > 1 else self.b2_plus_1(low)
        sum_: Tensor = up(x) + F.interpolate(out(low), scale_factor=2, mode="nearest")
        return sum_


class FAN(nn.Module):
    """Landmark network: images to heat maps.

    Args:
        num_maps: heat maps. The published network has 99: one for each of the 98 landmarks of WFLW,
            and a boundary.
        width: channels of the hourglass, a multiple of 16.
        input_size: pixels that images are resized to, a multiple of 64.
    """

    def __init__(self, num_maps: int = 99, width: int = 256, input_size: int = 256) -> None:
        super().__init__()
        self.input_size = input_size
        first, second = width // 4, width // 2
        self.conv1 = CoordConv(3, first, kernel_size=7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = Block(first, second)
        self.conv3 = Block(second, second)
        self.conv4 = Block(second, width)
        self.m0 = Hourglass(width)
        self.top_m_0 = Block(width, width)
        self.conv_last0 = nn.Conv2d(width, width, 1)
        self.bn_end0 = nn.BatchNorm2d(width)
        self.l0 = nn.Conv2d(width, num_maps, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return heat maps (B, num_maps, S/4, S/4) of images x (B, 3, H, H) in [-1, 1].

        S is `input_size`. A landmark is at the maximum of its map, about 1.
        """
        size = (self.input_size, self.input_size)
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        h = F.relu(self.bn1(self.conv1(x / 2 + 0.5)))
        h = F.avg_pool2d(self.conv2(h), 2)
        h = self.top_m_0(self.m0(self.conv4(self.conv3(h))))
        h = F.relu(self.bn_end0(self.conv_last0(h)))
        maps: Tensor = self.l0(h)
        return maps
