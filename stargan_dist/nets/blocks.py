"""Building blocks of StarGAN v2 (arXiv 1912.01865, appendix A)."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoded(NamedTuple):
    """Output of a generator's encoder, which does not depend on the guide.

    A generator that cannot encode anything without its guide returns the source itself.

    Attributes:
        bottleneck: features (B, C, h, w), or the source (B, 3, H, H).
        outlines: with the high-pass option, filtered features of the source by their size in
            pixels; else empty.
        candidates: number of domains whose encoders computed the features, one after the other in
            the channels, where the domain of a source is not known; else 1.
    """

    bottleneck: Tensor
    outlines: dict[int, Tensor]
    candidates: int = 1

    def detach(self) -> "Encoded":
        """Return the same features without their graph."""
        return self._map(lambda features: features.detach())

    def repeat_interleave(self, repeats: int) -> "Encoded":
        """Repeat each source `repeats` times, for several styles of one source."""
        return self._map(lambda features: features.repeat_interleave(repeats, 0))

    def to(self, dtype: torch.dtype) -> "Encoded":
        """Return the same features in another dtype."""
        return self._map(lambda features: features.to(dtype))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Encoded":
        outlines = {size: change(features) for size, features in self.outlines.items()}
        return self._replace(bottleneck=change(self.bottleneck), outlines=outlines)


class DiscriminatorOutput(NamedTuple):
    """Output of every discriminator for images (B, 3, H, H).

    Attributes:
        src: real or fake, (B,) or (B, patches): a logit or a score.
        cls: logits of the labels, (B, num_labels); None if the discriminator does not classify.
        coarser: as `src`, for the same images at lower resolutions.
    """

    src: Tensor
    cls: Tensor | None = None
    coarser: tuple[Tensor, ...] = ()

    @property
    def scales(self) -> tuple[Tensor, ...]:
        """Real or fake, at each resolution."""
        return (self.src, *self.coarser)


def concatenate_label(x: Tensor, label: Tensor) -> Tensor:
    """Append a label (B, n) to images (B, C, H, W) as n channels, each constant over the image."""
    return torch.cat([x, label[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)


def he_init(module: nn.Module) -> None:
    """Initialise convolutions and linear layers: He normal (fan-in, ReLU gain), zero biases.

    For `net.apply(he_init)`. `StackedLinear` initialises itself in the same way.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def upsample(x: Tensor) -> Tensor:
    """Double height and width by nearest-neighbour interpolation."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """Halve height and width by the mean of 2×2 pixels."""
    return F.avg_pool2d(x, 2)


def _window_means(kernel: Tensor) -> Tensor:
    """Mean over each 2×2 window of a zero-padded 3×3 kernel: (…, 3, 3) -> (…, 4, 4)."""
    return F.avg_pool2d(F.pad(kernel, [1, 1, 1, 1]), 2, stride=1)


class ConvDownsample(nn.Conv2d):
    """3×3 convolution followed by `downsample`, fused into one 4×4 convolution of stride 2.

    The fused form computes the same sums with 4/9 of the multiplications.
    """

    def kernel(self) -> Tensor:
        """Return the fused kernel (out, in, 4, 4)."""
        return _window_means(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel(), self.bias, stride=2, padding=1)


class UpsampleConv(nn.Conv2d):
    """`upsample` followed by a 3×3 convolution, fused into one transposed 4×4 convolution of
    stride 2.

    The fused form computes the same sums with 4/9 of the multiplications.
    """

    def kernel(self) -> Tensor:
        """Return the fused kernel (in, out, 4, 4), of a transposed convolution."""
        return 4 * _window_means(self.weight.flip(2, 3)).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.kernel(), self.bias, stride=2, padding=1)


def _conv1x1(dim_in: int, dim_out: int) -> nn.Module:
    """Projection on the shortcut of a block; the identity where the widths are equal."""
    return nn.Identity() if dim_in == dim_out else nn.Conv2d(dim_in, dim_out, 1, bias=False)


class StackedLinear(nn.Module):
    """K linear layers, one per domain, with stacked weights (K, out, in) and biases (K, out).

    The forward selects the weights of each sample's domain first and multiplies afterwards. So the
    cost of a step does not grow with K, and every parameter stays in the graph.
    """

    def __init__(self, num_domains: int, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_domains, dim_out, dim_in))
        self.bias = nn.Parameter(torch.zeros(num_domains, dim_out))
        nn.init.normal_(self.weight, std=math.sqrt(2 / dim_in))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Map x (B, in), with domain indices y (B,), to (B, out)."""
        weight = self.weight.index_select(0, y)  # (B, out, in)
        bias = self.bias.index_select(0, y)
        return torch.baddbmm(bias[:, :, None], weight, x[:, :, None])[:, :, 0]


class ResBlock(nn.Module):
    """Pre-activation residual block, (shortcut + residual) / sqrt(2).

    With `downsample` it halves height and width; with `normalize` it has instance norms.
    """

    def __init__(
        self, dim_in: int, dim_out: int, *, normalize: bool = False, downsample: bool = False
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.norm1 = nn.InstanceNorm2d(dim_in, affine=True) if normalize else nn.Identity()
        conv = ConvDownsample if downsample else nn.Conv2d
        self.conv1 = conv(dim_in, dim_in, 3, 1, 1)
        self.norm2 = nn.InstanceNorm2d(dim_in, affine=True) if normalize else nn.Identity()
        self.conv2 = nn.Conv2d(dim_in, dim_out, 3, 1, 1)
        self.conv1x1 = _conv1x1(dim_in, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        # A 1×1 convolution without bias commutes with pooling; after it, it costs a quarter.
        shortcut = self.conv1x1(downsample(x) if self.downsample else x)
        h = self.conv1(_leaky_relu(self.norm1(x)))
        h = self.conv2(_leaky_relu(self.norm2(h)))
        return (shortcut + h) / math.sqrt(2)


class AdaIN(nn.Module):
    """Adaptive instance normalisation: (1 + gamma) * norm(x) + beta.

    gamma and beta are linear in the style.
    """

    def __init__(self, style_dim: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=False)
        self.affine = nn.Linear(style_dim, 2 * channels)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Normalise x (B, C, H, W) by the style s (B, style_dim); returns (B, C, H, W)."""
        gamma, beta = self.affine(s)[:, :, None, None].chunk(2, dim=1)
        return (1 + gamma) * self.norm(x) + beta


class UnconditionalNorm(nn.Module):
    """Replacement of AdaIN for a style of length 0.

    Scale and shift are learned, and the same for all images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x: Tensor, _s: Tensor) -> Tensor:
        return self.norm(x)


class AdaINResBlock(nn.Module):
    """Residual block of the decoder with AdaIN.

    With `upsample` it doubles height and width. Generators with the high-pass option build it with
    `shortcut=False`: it then has neither a shortcut nor the factor 1/sqrt(2), because features of
    the source reach the decoder through the high-pass filter. Its 1×1 convolution stays, unused,
    because the published networks and parameter counts include it.
    """

    def __init__(
        self, dim_in: int, dim_out: int, style_dim: int, *, upsample: bool, shortcut: bool
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.shortcut = shortcut
        norm = partial(AdaIN, style_dim) if style_dim else UnconditionalNorm
        self.adain1 = norm(dim_in)
        conv = UpsampleConv if upsample else nn.Conv2d
        self.conv1 = conv(dim_in, dim_out, 3, 1, 1)
        self.adain2 = norm(dim_out)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, 1, 1)
        self.conv1x1 = _conv1x1(dim_in, dim_out)

    def _residual(self, x: Tensor, s: Tensor) -> Tensor:
        h = self.conv1(_leaky_relu(self.adain1(x, s)))
        return self.conv2(_leaky_relu(self.adain2(h, s)))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        h = self._residual(x, s)
        if not self.shortcut:
            return h
        shortcut = self.conv1x1(x)  # before upsampling, where it costs a quarter
        return ((upsample(shortcut) if self.upsample else shortcut) + h) / math.sqrt(2)


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
