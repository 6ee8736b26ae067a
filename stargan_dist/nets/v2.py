"""The four networks of StarGAN v2 (arXiv 1912.01865, appendix A): G, F, E and D.

Shapes: image x (B, 3, H, H) in [-1, 1]; domain y (B,) int64; latent z (B, latent_dim);
style s (B, style_dim).
"""

import math
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stargan_dist.nets.blocks import (
    AdaINResBlock,
    DiscriminatorOutput,
    Encoded,
    HighPass,
    ResBlock,
    StackedLinear,
    concatenate_label,
    he_init,
)
from stargan_dist.nets.precision import PrecisionModule, Trunk, autocast_to

SKIP_SIZES = (32, 64, 128)  # px at which the high-pass option keeps features of the source


def channel_widths(image_size: int, base_width: int, max_width: int, halvings: int) -> list[int]:
    """Return the number of channels before each halving of the size, and after the last one.

    It doubles each time, up to `max_width`. A `base_width` of 0 is the paper's 2**14 / image_size,
    a `max_width` of 0 the paper's 512.
    """
    first = base_width or 2**14 // image_size
    return [min(first * 2**i, max_width or 512) for i in range(halvings + 1)]


class Generator(PrecisionModule):
    """Generator G(x, s): an encoder with instance norm and a decoder with AdaIN.

    Only the style s carries the guide. `masks`, for the high-pass option only, are (B, 2, h, w) in
    [0, 1]: the first is used at 32 px, the second at 64 and 128 px.

    Encoder and decoder return the dtype of their input, whatever their `compute_dtype`.
    """

    compiled_methods: ClassVar[tuple[str, ...]] = ("encode", "decode")
    encodes: ClassVar[bool] = True
    """`encode` computes features; in other generators it returns the source."""
    candidates: int = 1
    """Number of encoders that a source of unknown domain passes through, see `Encoded`."""

    def __init__(
        self,
        image_size: int = 256,
        style_dim: int = 64,
        base_width: int = 0,
        max_width: int = 0,
        w_hpf: float = 0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        halvings = int(math.log2(image_size)) - 4 + (w_hpf > 0)
        widths = channel_widths(image_size, base_width, max_width, halvings)
        pairs = list(pairwise(widths))
        deep = widths[-1]
        plain = w_hpf == 0
        self.from_rgb = nn.Conv2d(channels, widths[0], 3, 1, 1)
        self.encoder = nn.ModuleList(
            [ResBlock(a, b, normalize=True, downsample=True) for a, b in pairs]
            + [ResBlock(deep, deep, normalize=True) for _ in range(2)]
        )
        self.decoder = nn.ModuleList(
            [AdaINResBlock(deep, deep, style_dim, upsample=False, shortcut=plain) for _ in range(2)]
            + [
                AdaINResBlock(b, a, style_dim, upsample=True, shortcut=plain)
                for a, b in reversed(pairs)
            ]
        )
        self.to_rgb = nn.Sequential(
            nn.InstanceNorm2d(widths[0], affine=True),
            nn.LeakyReLU(0.2),
            nn.Conv2d(widths[0], 3, 1),
        )
        self.high_pass = None if plain else HighPass(w_hpf)
        self.apply(he_init)

    def encode(self, x: Tensor, masks: Tensor | None = None, y: Tensor | None = None) -> Encoded:
        """Compute the half of G that does not depend on the style.

        Args:
            x: (B, 3, H, H).
            masks: see the class.
            y: domains of the sources, for generators that have an encoder for each; not used here.

        Raises:
            ValueError: masks are given without the high-pass option, or missing with it.
        """
        if (masks is None) != (self.high_pass is None):
            raise ValueError(
                "masks belong to the high-pass option (w_hpf > 0): give both or neither"
            )
        outlines = {}
        with autocast_to(self.compute_dtype, x.device):
            h = self.from_rgb(x)
            for block in self.encoder:
                if masks is not None and h.shape[2] in SKIP_SIZES:
                    outlines[h.shape[2]] = self._outline(h, masks)
                h = block(h)
        return Encoded(h, outlines).to(x.dtype)

    def _outline(self, features: Tensor, masks: Tensor) -> Tensor:
        """Filter masked features of the source (B, C, h, h)."""
        assert self.high_pass is not None
        size = features.shape[2]
        mask = masks[:, :1] if size == SKIP_SIZES[0] else masks[:, 1:]
        mask = F.interpolate(mask, size=(size, size), mode="bilinear")
        return self.high_pass(mask.to(features.dtype) * features)

    def decode(self, encoded: Encoded, s: Tensor) -> Tensor:
        """Compute the half of G that depends on the style.

        Returns:
            Images (B, 3, H, H), in about [-1, 1]: there is no tanh.
        """
        h = encoded.bottleneck
        with autocast_to(self.compute_dtype, h.device):
            for block in self.decoder:
                h = block(h, s)
                outline = encoded.outlines.get(h.shape[2])
                h = h if outline is None else h + outline.to(h.dtype)
        # Not under autocast: bfloat16 images would be coarser than the 8 bits of real ones.
        return self.to_rgb(h.to(s.dtype))

    def forward(self, x: Tensor, s: Tensor, masks: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x, masks), s)


class ConcatGenerator(Generator):
    """Generator G(x, c) with the body of `Generator` and no style.

    The label is concatenated to the image's channels, so nothing can be encoded without it. For
    recipes `a` and `b` (configurations A and B of the paper's ablation).
    """

    compiled_methods: ClassVar[tuple[str, ...]] = ("decode",)
    encodes: ClassVar[bool] = False

    def __init__(self, label_dim: int, **sizes: Any) -> None:
        super().__init__(style_dim=0, channels=3 + label_dim, **sizes)

    def encode(self, x: Tensor, masks: Tensor | None = None, y: Tensor | None = None) -> Encoded:
        """Return the source itself, because the label enters at the first layer."""
        return Encoded(x, {})

    def decode(self, encoded: Encoded, s: Tensor) -> Tensor:
        """Compute the whole of G; s is a label (B, label_dim)."""
        labelled = super().encode(concatenate_label(encoded.bottleneck, s))
        return super().decode(labelled, s)


class MappingForm(NamedTuple):
    """Number of layers of F that all domains share, and of those that each domain has.

    Without layers per domain, F is conditioned on the domain by an embedding concatenated to the
    latent.
    """

    shared: int
    per_domain: int


MAPPING_FORMS = {
    "branches": MappingForm(shared=4, per_domain=4),  # the published form
    "heads": MappingForm(shared=6, per_domain=1),  # first arXiv version
    "conditional": MappingForm(shared=8, per_domain=0),  # for thousands of domains
}


class MappingNetwork(nn.Module):
    """Mapping network F(z, y) -> s (B, style_dim): an MLP with ReLU between its layers.

    Its width is 512 by default. `form` is a key of `MAPPING_FORMS`.
    """

    def __init__(
        self,
        num_domains: int,
        latent_dim: int = 16,
        style_dim: int = 64,
        hidden_dim: int = 512,
        form: str = "branches",
    ) -> None:
        super().__init__()
        shared, per_domain = MAPPING_FORMS[form]
        depth = shared + per_domain
        self.embedding = None if per_domain else nn.Embedding(num_domains, style_dim)
        dim_first = latent_dim if per_domain else latent_dim + style_dim
        dims = [dim_first, *[hidden_dim] * (depth - 1), style_dim]
        pairs = list(pairwise(dims))
        self.shared = nn.ModuleList(nn.Linear(a, b) for a, b in pairs[:shared])
        self.branches = nn.ModuleList(StackedLinear(num_domains, a, b) for a, b in pairs[shared:])
        self.apply(he_init)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = z if self.embedding is None else torch.cat([z, self.embedding(y)], dim=1)
        layers: list[nn.Module] = [*self.shared, *self.branches]
        for i, layer in enumerate(layers):
            h = F.relu(h) if i else h
            h = layer(h, y) if isinstance(layer, StackedLinear) else layer(h)
        return h


class _Trunk(Trunk):
    """Trunk of E and of D: an image (B, 3, H, H) to one vector (B, dim_out).

    E and D have the same form of trunk, each with its own weights. It has no normalisation.
    """

    def __init__(self, image_size: int, base_width: int, max_width: int) -> None:
        halvings = int(math.log2(image_size)) - 2
        widths = channel_widths(image_size, base_width, max_width, halvings)
        blocks = [ResBlock(a, b, downsample=True) for a, b in pairwise(widths)]
        self.dim_out = widths[-1]
        super().__init__(
            nn.Conv2d(3, widths[0], 3, 1, 1),
            *blocks,
            nn.LeakyReLU(0.2),
            nn.Conv2d(self.dim_out, self.dim_out, 4),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )


class StyleEncoder(nn.Module):
    """Style encoder E(x, y) -> s (B, style_dim): a trunk and one linear head per domain."""

    def __init__(
        self,
        num_domains: int,
        image_size: int = 256,
        style_dim: int = 64,
        base_width: int = 0,
        max_width: int = 0,
    ) -> None:
        super().__init__()
        self.trunk = _Trunk(image_size, base_width, max_width)
        self.head = StackedLinear(num_domains, self.trunk.dim_out, style_dim)
        self.apply(he_init)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.trunk(x), y)


class LatentEncoder(StyleEncoder):
    """Latent encoder E(x) -> z (B, style_dim), the same for all domains.

    For recipe `d` (configuration D of the paper's ablation).
    """

    def __init__(self, **sizes: Any) -> None:
        super().__init__(1, **sizes)

    def forward(self, x: Tensor, _y: Tensor) -> Tensor:
        return super().forward(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))


class Discriminator(nn.Module):
    """Multi-task discriminator D(x, y) -> logit (B,): a trunk and one logit per domain.

    Only the logit of domain y is returned.
    """

    def __init__(
        self, num_domains: int, image_size: int = 256, base_width: int = 0, max_width: int = 0
    ) -> None:
        super().__init__()
        self.trunk = _Trunk(image_size, base_width, max_width)
        self.head = StackedLinear(num_domains, self.trunk.dim_out, 1)
        self.apply(he_init)

    def forward(
        self, x: Tensor, y: Tensor, *, double_backward: bool = False
    ) -> DiscriminatorOutput:
        h = self.trunk(x, double_backward=double_backward)
        return DiscriminatorOutput(self.head(h, y)[:, 0])


class ClassifyingDiscriminator(nn.Module):
    """ACGAN discriminator D(x): a logit (B,), and logits of the labels (B, num_labels).

    It has the trunk of `Discriminator` and one linear head. Labels, the second argument of every
    discriminator, are ignored. For the recipes `a` (configuration A of the paper's ablation) and
    `c_acgan`.
    """

    def __init__(self, num_labels: int, **sizes: Any) -> None:
        super().__init__()
        self.trunk = _Trunk(**sizes)
        self.head = nn.Linear(self.trunk.dim_out, 1 + num_labels)
        self.apply(he_init)

    def forward(
        self, x: Tensor, _y: Tensor | None = None, *, double_backward: bool = False
    ) -> DiscriminatorOutput:
        logits = self.head(self.trunk(x, double_backward=double_backward))
        return DiscriminatorOutput(logits[:, 0], logits[:, 1:])
