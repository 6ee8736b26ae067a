"""The networks of CycleGAN (arXiv 1703.10593, section 4 and appendix 7.2), one for each domain.

Shapes: image x (B, 3, H, H) in [-1, 1]; domain y (B,) int64. Convolutions before an instance norm
have biases, which have no effect, because the published networks and parameter counts include them.
"""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from stargan_dist.nets.blocks import DiscriminatorOutput, Encoded
from stargan_dist.nets.per_domain import PerDomain
from stargan_dist.nets.precision import Trunk

BASE_WIDTH, MAX_WIDTH = 64, 512  # channels, as in the paper
FEW_BLOCKS, MANY_BLOCKS = 6, 9  # residual blocks of G, up to 128 px and above
INIT_STD = 0.02


def normal_init(module: nn.Module) -> None:
    """Initialise convolutions with N(0, 0.02) and zero biases. For `net.apply(normal_init)`."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=INIT_STD)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def _reflected(dim_in: int, dim_out: int, kernel: int) -> nn.Module:
    """Convolution of stride 1 that keeps the size, with reflection padding."""
    return nn.Conv2d(dim_in, dim_out, kernel, 1, kernel // 2, padding_mode="reflect")


def _norm_relu(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)]


class ResidualBlock(nn.Module):
    """Residual block: x + IN(conv(ReLU(IN(conv(x)))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *_norm_relu(_reflected(width, width, 3), width),
            _reflected(width, width, 3),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class ResNet(nn.Sequential):
    """Image (B, 3, H, H) to image, in [-1, 1]: two halvings, residual blocks, two doublings."""

    def __init__(self, width: int, blocks: int) -> None:
        down = [(width, 2 * width), (2 * width, 4 * width)]
        trunk = Trunk(
            *_norm_relu(_reflected(3, width, 7), width),
            *[m for a, b in down for m in _norm_relu(nn.Conv2d(a, b, 3, 2, 1), b)],
            *[ResidualBlock(4 * width) for _ in range(blocks)],
            *[
                m
                for a, b in reversed(down)
                for m in _norm_relu(nn.ConvTranspose2d(b, a, 3, 2, 1, output_padding=1), a)
            ],
        )
        # The last layer computes in the dtype of its weights: bfloat16 is coarser than 8 bits.
        super().__init__(trunk, _reflected(width, 3, 7), nn.Tanh())


class Generator(nn.Module):
    """Generator G(x, c) -> (B, 3, H, H) in [-1, 1]: a ResNet for each target domain.

    c (B, K) is the target, one-hot. With two domains, the ResNet of a domain is the paper's G or F.
    """

    encodes: ClassVar[bool] = False

    def __init__(self, num_domains: int, image_size: int = 256, base_width: int = 0) -> None:
        super().__init__()
        blocks = MANY_BLOCKS if image_size > 128 else FEW_BLOCKS
        width = base_width or BASE_WIDTH
        self.to_domain = PerDomain(num_domains, lambda: ResNet(width, blocks))
        self.apply(normal_init)

    def encode(self, x: Tensor, masks: Tensor | None = None, y: Tensor | None = None) -> Encoded:
        """Return the source itself, because the networks of the targets have no layer in common."""
        return Encoded(x, {})

    def decode(self, encoded: Encoded, c: Tensor) -> Tensor:
        """Compute the whole of G from an encoded source and a target c (B, K)."""
        output: Tensor = self.to_domain(encoded.bottleneck, c.argmax(1))
        return output

    def forward(self, x: Tensor, c: Tensor, masks: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x, masks), c)


class PatchGAN(nn.Module):
    """Scores (B, patches) of overlapping patches of 70 × 70 pixels (arXiv 1611.07004)."""

    def __init__(self, width: int, max_width: int) -> None:
        super().__init__()
        widths = [min(width * 2**i, max_width) for i in range(4)]
        strides = (2, 2, 1)
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for (a, b), stride in zip(pairwise(widths), strides, strict=True):
            layers += [nn.Conv2d(a, b, 4, stride, 1), nn.InstanceNorm2d(b), nn.LeakyReLU(0.2)]
        self.trunk = Trunk(*layers)
        self.src = nn.Conv2d(widths[-1], 1, 4, 1, 1)

    def forward(self, x: Tensor, *, double_backward: bool = False) -> Tensor:
        scores: Tensor = self.src(self.trunk(x, double_backward=double_backward))
        return scores.flatten(1)


class Discriminator(nn.Module):
    """Discriminator D(x, y) -> scores of patches (B, patches): a PatchGAN for each domain."""

    def __init__(self, num_domains: int, base_width: int = 0, max_width: int = 0) -> None:
        super().__init__()
        width, cap = base_width or BASE_WIDTH, max_width or MAX_WIDTH
        self.of_domain = PerDomain(num_domains, lambda: PatchGAN(width, cap))
        self.apply(normal_init)

    def forward(
        self, x: Tensor, y: Tensor, *, double_backward: bool = False
    ) -> DiscriminatorOutput:
        return DiscriminatorOutput(self.of_domain(x, y, double_backward=double_backward))
