"""The networks of MUNIT (arXiv 1804.04732, appendix B.2), one for each domain.

Shapes: image x (B, 3, H, H) in [-1, 1]; domain y (B,) int64; style s (B, style_dim), of the
standard normal distribution. Convolutions are padded by reflection, and those before a norm have
biases, because the published networks and parameter counts include them.
"""

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stargan_dist.nets.blocks import Encoded, he_init
from stargan_dist.nets.cyclegan import ResidualBlock, normal_init
from stargan_dist.nets.multi_scale import MultiScaleDiscriminator
from stargan_dist.nets.per_domain import ContentGenerator, PerDomain, encode_sources
from stargan_dist.nets.precision import PrecisionModule, Trunk, autocast_to

BASE_WIDTH, MAX_WIDTH = 64, 512  # channels, as in the paper
BLOCKS = 4  # residual blocks of an encoder and of a decoder


def _conv(dim_in: int, dim_out: int, kernel: int, stride: int = 1) -> nn.Module:
    """Convolution that keeps the size, or with a stride of 2 halves it."""
    padding = (kernel - 1) // 2
    return nn.Conv2d(dim_in, dim_out, kernel, stride, padding, padding_mode="reflect")


class ContentEncoder(Trunk):
    """Content encoder: image to features (B, 4 · width, H/4, H/4)."""

    def __init__(self, width: int) -> None:
        convs = [(3, width, 7, 1), (width, 2 * width, 4, 2), (2 * width, 4 * width, 4, 2)]
        super().__init__(
            *[
                layer
                for conv in convs
                for layer in (_conv(*conv), nn.InstanceNorm2d(conv[1]), nn.ReLU(inplace=True))
            ],
            *[ResidualBlock(4 * width) for _ in range(BLOCKS)],
        )


class AdaINResidualBlock(nn.Module):
    """Residual block: x + AdaIN(conv(ReLU(AdaIN(conv(x)))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(width, width, 3), _conv(width, width, 3)
        self.norm = nn.InstanceNorm2d(width)

    def forward(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: (B, width, h, h).
            parameters: (B, 4 · width), shift and scale of the first AdaIN, then of the second. The
                scale is not relative to 1.
        """
        shift1, scale1, shift2, scale2 = parameters[:, :, None, None].chunk(4, 1)
        h = F.relu(scale1 * self.norm(self.conv1(x)) + shift1)
        return x + scale2 * self.norm(self.conv2(h)) + shift2


class LayerNorm(nn.Module):
    """Layer norm of a whole sample: (x - mean) / (std + eps), scaled and shifted by channel.

    The deviation is that of a sample of C·H·W numbers (n - 1), and scales begin in [0, 1), as in
    the authors' program.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.rand(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # In float32 at least: a mean of bfloat16 numbers is rounded to 8 bits.
        h = x.to(torch.promote_types(x.dtype, torch.float32))
        std, mean = torch.std_mean(h, (1, 2, 3), keepdim=True)
        h = (h - mean) / (std + self.eps)
        return (self.weight[:, None, None] * h + self.bias[:, None, None]).to(x.dtype)


class Decoder(PrecisionModule):
    """Decoder: features and a style to an image in [-1, 1].

    An MLP computes the parameters of every AdaIN from the style.
    """

    compiled_methods: ClassVar[tuple[str, ...]] = ("decode_low_precision",)

    def __init__(self, width: int, style_dim: int) -> None:
        super().__init__()
        deep = 4 * width
        self.mlp = nn.Sequential(
            *[nn.Linear(style_dim, deep), nn.ReLU(inplace=True)],
            *[nn.Linear(deep, deep), nn.ReLU(inplace=True)],
            nn.Linear(deep, BLOCKS * 4 * deep),
        )
        self.blocks = nn.ModuleList(AdaINResidualBlock(deep) for _ in range(BLOCKS))
        self.up = nn.Sequential(
            *[
                layer
                for a, b in pairwise((deep, 2 * width, width))
                for layer in (
                    nn.Upsample(scale_factor=2), _conv(a, b, 5), LayerNorm(b), nn.ReLU(inplace=True)
                )
            ]
        )  # fmt: skip
        # It computes in the dtype of its weights: bfloat16 is coarser than 8 bits.
        self.to_rgb = nn.Sequential(_conv(width, 3, 7), nn.Tanh())

    def decode_low_precision(self, features: Tensor, s: Tensor) -> Tensor:
        h = features
        with autocast_to(self.compute_dtype, h.device):
            for block, parameters in zip(self.blocks, self.mlp(s).chunk(BLOCKS, 1), strict=True):
                h = block(h, parameters)
            return self.up(h).to(features.dtype)

    def forward(self, features: Tensor, s: Tensor) -> Tensor:
        image: Tensor = self.to_rgb(self.decode_low_precision(features, s))
        return image


class Generator(ContentGenerator):
    """Generator G(x, c) -> (B, 3, H, H) in [-1, 1]: a content encoder and a decoder per domain.

    c (B, K + style_dim) is the target, one-hot, and a style of it. A source is encoded by the
    encoder of its own domain and decoded by the decoder of the target.
    """

    def __init__(self, num_domains: int, style_dim: int = 8, base_width: int = 0) -> None:
        super().__init__(num_domains)
        width = base_width or BASE_WIDTH
        self.encoder = PerDomain(num_domains, lambda: ContentEncoder(width))
        self.decoder = PerDomain(num_domains, lambda: Decoder(width, style_dim))
        self.apply(he_init)

    def encode(self, x: Tensor, masks: Tensor | None = None, y: Tensor | None = None) -> Encoded:
        """Encode sources x by the encoder of their domain y, or by all if it is not known."""
        return encode_sources(self.encoder, x, y)


class _StyleNetwork(nn.Module):
    """Style encoder of a domain: image to style. Without norms, which would remove the style."""

    def __init__(self, width: int, style_dim: int) -> None:
        super().__init__()
        deep = 4 * width
        layers: list[nn.Module] = [_conv(3, width, 7), nn.ReLU(inplace=True)]
        for a, b in pairwise((width, 2 * width, deep, deep, deep)):
            layers += [_conv(a, b, 4, 2), nn.ReLU(inplace=True)]
        self.trunk = Trunk(*layers)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(deep, style_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        style: Tensor = self.head(self.trunk(x))
        return style.flatten(1)


class StyleEncoder(nn.Module):
    """Style encoder E(x, y) -> s (B, style_dim): a network for each domain."""

    def __init__(self, num_domains: int, style_dim: int = 8, base_width: int = 0) -> None:
        super().__init__()
        width = base_width or BASE_WIDTH
        self.of_domain = PerDomain(num_domains, lambda: _StyleNetwork(width, style_dim))
        self.apply(he_init)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        style: Tensor = self.of_domain(x, y)
        return style


class Discriminator(MultiScaleDiscriminator):
    """Discriminator D(x, y) -> scores of patches at three resolutions: networks for each domain."""

    def __init__(
        self, num_domains: int, image_size: int = 256, base_width: int = 0, max_width: int = 0
    ) -> None:
        width, cap = base_width or BASE_WIDTH, max_width or MAX_WIDTH
        super().__init__(num_domains, image_size, width, cap, slope=0.2)
        self.apply(normal_init)
