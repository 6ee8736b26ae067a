"""The networks of DRIT (arXiv 1808.00948) in the form of its authors' program, by concatenation.

G splits an image into a content, which an encoder for each domain computes, and an attribute, a
short vector that the decoder of the target domain is given. E predicts the attribute. MSGAN
(arXiv 1903.05628) has the same networks.

Shapes: image x (B, 3, H, H) in [-1, 1]; domain y (B,) int64; content (B, 4·width, H/4, H/4);
attribute z (B, latent_dim). Convolutions have biases, and reflect at the edges.
"""

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stargan_dist.nets.blocks import Encoded, downsample
from stargan_dist.nets.cyclegan import ResidualBlock
from stargan_dist.nets.multi_scale import MultiScaleDiscriminator
from stargan_dist.nets.per_domain import ContentGenerator, PerDomain, encode_sources
from stargan_dist.nets.precision import PrecisionModule, Trunk, autocast_to

BASE_WIDTH, MAX_WIDTH = 64, 512  # channels, as in the authors' program
INIT_STD = 0.02
DOWN = 4  # pixels of an image for each of its content, along an axis
GUIDES = 2  # with fakes that D sees: by encoded attributes, and by random ones
CONTENT_HALVINGS, CONTENT_KERNEL, LAST_KERNEL = 3, 7, 4  # of C


def normal_weights(module: nn.Module) -> None:
    """Initialise the weights of convolutions with N(0, 0.02). For `net.apply(normal_weights)`.

    As in the authors' program, biases and linear layers keep PyTorch's defaults.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=INIT_STD)


def _conv(dim_in: int, dim_out: int, kernel: int, stride: int = 1, pad: int = 1) -> nn.Module:
    return nn.Conv2d(dim_in, dim_out, kernel, stride, pad, padding_mode="reflect")


def _conv_leaky(*sizes: int) -> list[nn.Module]:
    return [_conv(*sizes), nn.LeakyReLU(0.01)]


def _halving(width: int) -> list[nn.Module]:
    conv = _conv(width, 2 * width, 3, 2)
    return [conv, nn.InstanceNorm2d(2 * width), nn.ReLU(inplace=True)]


def _layers(width: int) -> Trunk:
    """Return the layers of a domain's content encoder."""
    return Trunk(
        *_conv_leaky(3, width, 7, 1, 3),
        *_halving(width),
        *_halving(2 * width),
        *[ResidualBlock(4 * width) for _ in range(3)],
    )


class ContentEncoder(nn.Module):
    """Content encoder: layers of each domain, and a last residual block that all share."""

    def __init__(self, num_domains: int, width: int) -> None:
        super().__init__()
        self.of_domain = PerDomain(num_domains, lambda: _layers(width))
        self.shared = Trunk(ResidualBlock(4 * width))

    def forward(self, x: Tensor, y: Tensor | None) -> Encoded:
        """Return the contents of x (B, 3, H, H) of domains y (B,); see `encode_sources`."""
        encoded = encode_sources(self.of_domain, x, y)
        contents = [self.shared(h) for h in encoded.bottleneck.chunk(encoded.candidates, 1)]
        return encoded._replace(bottleneck=torch.cat(contents, 1))


class UpBlock(nn.Sequential):
    """Double height and width: a transposed convolution, layer norm and ReLU.

    The layer norm is over channels and places, with a scale and a shift for each channel.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        conv = nn.ConvTranspose2d(dim_in, dim_out, 3, 2, 1, output_padding=1)
        super().__init__(conv, nn.GroupNorm(1, dim_out), nn.ReLU(inplace=True))


def _append(h: Tensor, z: Tensor) -> Tensor:
    """Append an attribute (B, n) to features (B, C, h, w) as n channels."""
    return torch.cat([h, z[:, :, None, None].expand(-1, -1, *h.shape[2:])], dim=1)


class DomainDecoder(PrecisionModule):
    """Decoder of one domain: features (B, 4·width, h, h) and z to an image (B, 3, 4h, 4h).

    The attribute enters again at every stage.
    """

    compiled_methods: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        first = 4 * width + latent_dim
        second = (first + latent_dim) // 2
        third = (second + latent_dim) // 2
        self.blocks = nn.Sequential(*[ResidualBlock(first) for _ in range(3)])
        self.up1 = UpBlock(first + latent_dim, second)
        self.up2 = UpBlock(second + latent_dim, third)
        self.to_rgb = nn.ConvTranspose2d(third + latent_dim, 3, 1)

    def features(self, h: Tensor, z: Tensor) -> Tensor:
        """Compute all layers but the last one, in the dtype of the trunk."""
        with autocast_to(self.compute_dtype, h.device):
            h = self.blocks(_append(h, z))
            for up in (self.up1, self.up2):
                h = up(_append(h, z))
        return h.to(z.dtype)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        # The last layer computes in the dtype of its weights: bfloat16 is coarser than 8 bits.
        return torch.tanh(self.to_rgb(_append(self.features(h, z), z)))


class Decoder(nn.Module):
    """Decoder of contents: a first residual block that all domains share, and theirs."""

    def __init__(self, num_domains: int, width: int, latent_dim: int) -> None:
        super().__init__()
        self.shared = Trunk(ResidualBlock(4 * width))
        self.of_domain = PerDomain(num_domains, lambda: DomainDecoder(width, latent_dim))

    def forward(self, content: Tensor, y: Tensor, z: Tensor) -> Tensor:
        output: Tensor = self.of_domain(self.shared(content), y, z)
        return output


class Generator(ContentGenerator):
    """Generator G(x, c) -> (B, 3, H, H) in [-1, 1]: a content encoder and a decoder.

    c (B, K + latent_dim) is the target, one-hot, and an attribute.
    """

    def __init__(self, num_domains: int, latent_dim: int, base_width: int = 0) -> None:
        super().__init__(num_domains)
        width = base_width or BASE_WIDTH
        self.encoder = ContentEncoder(num_domains, width)
        self.decoder = Decoder(num_domains, width, latent_dim)
        self.apply(normal_weights)

    def encode(self, x: Tensor, masks: Tensor | None = None, y: Tensor | None = None) -> Encoded:
        """Return the contents of sources x (B, 3, H, H) of domains y, if they are known."""
        encoded: Encoded = self.encoder(x, y)
        return encoded


class DownBlock(nn.Module):
    """Residual block of E, which halves height and width. It has no normalisation."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(dim_in, dim_in, 3), _conv(dim_in, dim_out, 3)
        self.conv1x1 = nn.Conv2d(dim_in, dim_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(x, 0.2))
        h = self.conv2(F.leaky_relu(h, 0.2))
        return downsample(h) + self.conv1x1(downsample(x))


class _Pool(nn.Module):
    """Mean over all places: (B, C, h, w) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class AttributeNet(nn.Module):
    """Attribute encoder of one domain: a trunk and a linear head."""

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        widths = [width * i for i in range(1, 5)]
        self.trunk = Trunk(
            _conv(3, width, 4, 2),
            *[DownBlock(a, b) for a, b in pairwise(widths)],
            nn.LeakyReLU(0.2),
            _Pool(),
        )
        self.head = nn.Linear(widths[-1], 2 * latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.trunk(x))
        return output


class AttributeEncoder(nn.Module):
    """Attribute encoder E(x, y) -> (B, 2·latent_dim): a mean and a log variance, for each domain a
    network."""

    def __init__(self, num_domains: int, latent_dim: int, base_width: int = 0) -> None:
        super().__init__()
        width = base_width or BASE_WIDTH
        self.of_domain = PerDomain(num_domains, lambda: AttributeNet(width, latent_dim))
        self.apply(normal_weights)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        output: Tensor = self.of_domain(x, y)
        return output


class Discriminator(nn.ModuleList):
    """A `MultiScaleDiscriminator` for the fakes of each guide, in their order."""

    def __init__(
        self,
        num_domains: int,
        num_guides: int,
        image_size: int = 256,
        base_width: int = 0,
        max_width: int = 0,
    ) -> None:
        width, cap = base_width or BASE_WIDTH, max_width or MAX_WIDTH
        super().__init__(
            MultiScaleDiscriminator(num_domains, image_size, width, cap, slope=0.01)
            for _ in range(num_guides)
        )
        self.apply(normal_weights)


class ContentDiscriminator(nn.Module):
    """Discriminator of contents C(content) -> logits of domain 1, (B, patches).

    Three halvings without normalisation, with kernels of 7 pixels, and a kernel of 4 pixels: one
    patch at the 216 px of the authors' program, 2 × 2 at 256 px. Small contents allow fewer
    halvings, and smaller kernels after them.
    """

    def __init__(self, image_size: int = 256, base_width: int = 0) -> None:
        super().__init__()
        width, size = 4 * (base_width or BASE_WIDTH), image_size // DOWN
        layers: list[nn.Module] = []
        for _ in range(CONTENT_HALVINGS):
            if size + 2 >= CONTENT_KERNEL:
                layers += _conv_leaky(width, width, CONTENT_KERNEL, 2, 1)
                size = (size + 2 - CONTENT_KERNEL) // 2 + 1
        layers += _conv_leaky(width, width, min(size, LAST_KERNEL), 1, 0)
        self.trunk = Trunk(*layers)
        self.src = nn.Conv2d(width, 1, 1)
        self.apply(normal_weights)

    def forward(self, content: Tensor) -> Tensor:
        logits: Tensor = self.src(self.trunk(content))
        return logits.flatten(1)
