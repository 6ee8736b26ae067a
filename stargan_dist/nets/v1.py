"""The two networks of StarGAN (arXiv 1711.09020, appendix, tables 4 and 5).

Shapes: image x (B, 3, H, H) in [-1, 1]; label c (B, label_dim), which is tiled over the image and
concatenated to its channels. Weights have torch's default initialisation, like the authors'.
"""

import math

from torch import Tensor, nn

from stargan_dist.nets.blocks import DiscriminatorOutput, Encoded, concatenate_label
from stargan_dist.nets.precision import PrecisionModule, Trunk, autocast_to

BASE_WIDTH, MAX_WIDTH = 64, 2048  # channels, as in the paper
RESIDUAL_BLOCKS = 6
CONVOLUTIONS = 6  # of D; each halves the size


def _conv_norm_relu(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.InstanceNorm2d(channels, affine=True), nn.ReLU(inplace=True)]


class ResidualBlock(nn.Module):
    """Residual block of the bottleneck: x + IN(conv(ReLU(IN(conv(x)))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *_conv_norm_relu(nn.Conv2d(width, width, 3, 1, 1, bias=False), width),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.InstanceNorm2d(width, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class Generator(PrecisionModule):
    """Generator G(x, c) -> (B, 3, H, H) in [-1, 1].

    All convolutions have zero padding. With reflection padding the label would have no effect at
    the border.
    """

    compiled_methods = ("decode",)
    encodes = False

    def __init__(self, label_dim: int, base_width: int = 0) -> None:
        super().__init__()
        width = base_width or BASE_WIDTH
        down = [(width, 2 * width), (2 * width, 4 * width)]
        self.body = nn.Sequential(
            *_conv_norm_relu(nn.Conv2d(3 + label_dim, width, 7, 1, 3, bias=False), width),
            *[m for a, b in down for m in _conv_norm_relu(nn.Conv2d(a, b, 4, 2, 1, bias=False), b)],
            *[ResidualBlock(4 * width) for _ in range(RESIDUAL_BLOCKS)],
            *[
                m
                for a, b in reversed(down)
                for m in _conv_norm_relu(nn.ConvTranspose2d(b, a, 4, 2, 1, bias=False), a)
            ],
        )
        self.to_rgb = nn.Sequential(nn.Conv2d(width, 3, 7, 1, 3, bias=False), nn.Tanh())

    def encode(self, x: Tensor, masks: Tensor | None = None, y: Tensor | None = None) -> Encoded:
        """Return the source itself, because the label enters at the first layer."""
        return Encoded(x, {})

    def decode(self, encoded: Encoded, c: Tensor) -> Tensor:
        """Compute the whole of G from an encoded source and a label c (B, label_dim)."""
        x = encoded.bottleneck
        with autocast_to(self.compute_dtype, x.device):
            h = self.body(concatenate_label(x, c))
        return self.to_rgb(h.to(x.dtype))  # not in bfloat16, which is coarser than 8 bits

    def forward(self, x: Tensor, c: Tensor, masks: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x, masks), c)


class _Convolutions(Trunk):
    """Convolutions of stride 2 with LeakyReLU, without normalisation."""

    def __init__(self, widths: list[int]) -> None:
        pairs = zip([3, *widths], widths, strict=False)
        layers = [(nn.Conv2d(a, b, 4, 2, 1), nn.LeakyReLU(0.01)) for a, b in pairs]
        super().__init__(*[module for layer in layers for module in layer])


class Discriminator(nn.Module):
    """Discriminator D(x): scores of patches (B, patches), logits of labels (B, num_labels).

    Labels, the second argument of every discriminator, are ignored.
    """

    def __init__(
        self, num_labels: int, image_size: int = 128, base_width: int = 0, max_width: int = 0
    ) -> None:
        super().__init__()
        first, cap = base_width or BASE_WIDTH, max_width or MAX_WIDTH
        halvings = min(CONVOLUTIONS, int(math.log2(image_size)))
        widths = [min(first * 2**i, cap) for i in range(halvings)]
        self.trunk = _Convolutions(widths)
        self.src = nn.Conv2d(widths[-1], 1, 3, 1, 1, bias=False)
        self.cls = nn.Conv2d(widths[-1], num_labels, image_size >> halvings, bias=False)

    def forward(
        self, x: Tensor, _y: Tensor | None = None, *, double_backward: bool = False
    ) -> DiscriminatorOutput:
        h = self.trunk(x, double_backward=double_backward)
        return DiscriminatorOutput(self.src(h).flatten(1), self.cls(h).flatten(1))
