"""Building blocks of StarGAN v2 (arXiv 1912.01865, appendix A)."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoded(NamedTuple):
    """What a generator makes of a source without knowing its guide: the bottleneck, and what the
    high-pass option keeps. A generator that can make nothing of it hands on the source."""

    bottleneck: Tensor
    kept: dict[int, Tensor]

    def detach(self) -> "Encoded":
        kept = {size: features.detach() for size, features in self.kept.items()}
        return Encoded(self.bottleneck.detach(), kept)

    def repeat_interleave(self, repeats: int) -> "Encoded":
        """Each source `repeats` times, for several styles of one source."""
        kept = {size: f.repeat_interleave(repeats, 0) for size, f in self.kept.items()}
        return Encoded(self.bottleneck.repeat_interleave(repeats, 0), kept)

    def to(self, dtype: torch.dtype) -> "Encoded":
        kept = {size: features.to(dtype) for size, features in self.kept.items()}
        return Encoded(self.bottleneck.to(dtype), kept)


class DiscriminatorOutput(NamedTuple):
    """Output of every discriminator for images (B, 3, H, H).

    Attributes:
        src: real or fake, (B,) or (B, patches): a logit or a score.
        cls: logits of the labels, (B, num_labels); None if the discriminator does not classify.
    """

    src: Tensor
    cls: Tensor | None = None


def concatenate(x: Tensor, label: Tensor) -> Tensor:
    """Depth-wise: the label (B, n) as n more channels, each constant over the image."""
    return torch.cat([x, label[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)


def he_init(module: nn.Module) -> None:
    """He normal (fan-in, ReLU gain) for convolutions and linear layers, zero biases.

    For `net.apply(he_init)`. Stacked linear layers do the same when they are made.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _windows(kernel: Tensor) -> Tensor:
    """Means of the 2×2 windows of a zero-padded 3×3 kernel: (…, 3, 3) -> (…, 4, 4)."""
    return F.avg_pool2d(F.pad(kernel, [1, 1, 1, 1]), 2, stride=1)


class ConvThenHalve(nn.Conv2d):
    """`halve(conv(x))` for a 3×3 convolution: the same sums as one 4×4 convolution of stride 2,
    with 4/9 of the multiplications."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, _windows(self.weight), self.bias, stride=2, padding=1)


class DoubleThenConv(nn.Conv2d):
    """`conv(double(x))` for a 3×3 convolution: the same sums as one transposed 4×4 convolution of
    stride 2, with 4/9 of the multiplications."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = 4 * _windows(self.weight.flip(2, 3)).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


def _conv1x1(dim_in: int, dim_out: int) -> nn.Module:
    """The shortcut of a block, where the widths differ."""
    return nn.Identity() if dim_in == dim_out else nn.Conv2d(dim_in, dim_out, 1, bias=False)


class StackedLinear(nn.Module):
    """K linear layers, one per domain, their weights stacked: (K, out, in) and (K, out).

    The rows of the batch's domains are picked first and multiplied afterwards, so the cost of a
    step does not grow with K and every parameter stays in the graph.
    """

    def __init__(self, num_domains: int, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_domains, dim_out, dim_in))
        self.bias = nn.Parameter(torch.zeros(num_domains, dim_out))
        nn.init.normal_(self.weight, std=math.sqrt(2 / dim_in))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, in), y (B,) domain indices -> (B, out)."""
        weight = self.weight.index_select(0, y)  # (B, out, in)
        bias = self.bias.index_select(0, y)
        return torch.baddbmm(bias[:, :, None], weight, x[:, :, None])[:, :, 0]


class ResBlock(nn.Module):
    """Pre-activation residual block, (shortcut + residual) / sqrt(2), that may halve the size."""

    def __init__(
        self, dim_in: int, dim_out: int, *, normalize: bool = False, downsample: bool = False
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.norm1 = nn.InstanceNorm2d(dim_in, affine=True) if normalize else nn.Identity()
        first = ConvThenHalve if downsample else nn.Conv2d
        self.conv1 = first(dim_in, dim_in, 3, 1, 1)
        self.norm2 = nn.InstanceNorm2d(dim_in, affine=True) if normalize else nn.Identity()
        self.conv2 = nn.Conv2d(dim_in, dim_out, 3, 1, 1)
        self.conv1x1 = _conv1x1(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        # A 1×1 convolution without bias may as well follow the pooling: a quarter of the work.
        shortcut = self.conv1x1(halve(x) if self.downsample else x)
        h = self.conv1(_leaky(self.norm1(x)))
        h = self.conv2(_leaky(self.norm2(h)))
        return (shortcut + h) / math.sqrt(2)


class AdaIN(nn.Module):
    """Adaptive instance normalisation: (1 + gamma) * norm(x) + beta, both linear in the style."""

    def __init__(self, style_dim: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=False)
        self.affine = nn.Linear(style_dim, 2 * channels)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """x (B, C, H, W), s (B, style_dim) -> (B, C, H, W)."""
        gamma, beta = self.affine(s)[:, :, None, None].chunk(2, dim=1)
        return (1 + gamma) * self.norm(x) + beta


class Unstyled(nn.Module):
    """AdaIN for a style of no length: scale and shift are learned, the same for all images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: Tensor, _s: Tensor) -> Tensor:
        return self.norm(x)


class AdaINResBlock(nn.Module):
    """Residual block of the decoder, styled by AdaIN, that may double the size.

    With the high-pass option it has neither shortcut nor 1/sqrt(2): what is kept of the source
    then comes through the high-pass filter. Its 1×1 convolution stays, unused, because the
    published networks and parameter counts hold it.
    """

    def __init__(
        self, dim_in: int, dim_out: int, style_dim: int, *, upsample: bool, shortcut: bool
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.shortcut = shortcut
        norm: Callable[[int], nn.Module] = partial(AdaIN, style_dim) if style_dim else Unstyled
        self.adain1 = norm(dim_in)
        first = DoubleThenConv if upsample else nn.Conv2d
        self.conv1 = first(dim_in, dim_out, 3, 1, 1)
        self.adain2 = norm(dim_out)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, 1, 1)
        self.conv1x1 = _conv1x1(dim_in, dim_out)

    def _residual(self, x: Tensor, s: Tensor) -> Tensor:
        h = self.conv1(_leaky(self.adain1(x, s)))
        return self.conv2(_leaky(self.adain2(h, s)))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        h = self._residual(x, s)
        if not self.shortcut:
            return h
        shortcut = self.conv1x1(x)  # ahead of the doubling: a quarter of the work
        return ((double(shortcut) if self.upsample else shortcut) + h) / math.sqrt(2)


class HighPass(nn.Module):
    """Depth-wise 3×3 high-pass filter, divided by w_hpf."""

    kernel: Tensor

    def __init__(self, w_hpf: float) -> None:
        super().__init__()
        kernel = torch.full((3, 3), -1.0)
        kernel[1, 1] = 8.0
        self.register_buffer("kernel", kernel / w_hpf, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 3, 3)
        return F.conv2d(x, kernel, padding=1, groups=channels)
