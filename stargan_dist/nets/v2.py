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
    concatenate,
    he_init,
)
from stargan_dist.nets.precision import Policy, PrecisionModule, Trunk, autocast_to, set_precision

KEPT_SIZES = (32, 64, 128)  # where the high-pass option keeps the source's features


def widths_of(image_size: int, base_width: int, max_width: int, halvings: int) -> list[int]:
    """Channels before each halving and after the last: doubled each time, capped.

    Widths of 0 stand for the paper's: 2**14 / image_size, and at most 512.
    """
    first = base_width or 2**14 // image_size
    return [min(first * 2**i, max_width or 512) for i in range(halvings + 1)]


class Generator(PrecisionModule):
    """G(x, s): an encoder with instance norm and a decoder styled by AdaIN.

    What guides it is in the style alone. `masks`, for the high-pass option only, are two tensors
    (B, 1, h, w) in [0, 1]: the first is used at 32 px, the second at 64 and 128 px.

    Each half gives back the dtype it was given, whatever it computes in (`compute_dtype`).
    """

    compiled_methods: ClassVar[tuple[str, ...]] = ("encode", "decode")

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
        widths = widths_of(image_size, base_width, max_width, halvings)
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

    def encode(self, x: Tensor) -> Encoded:
        """The half that does not depend on the style."""
        kept = {}
        with autocast_to(self.compute_dtype, x.device):
            h = self.from_rgb(x)
            for block in self.encoder:
                if self.high_pass is not None and h.shape[2] in KEPT_SIZES:
                    kept[h.shape[2]] = h
                h = block(h)
        return Encoded(h, kept).to(x.dtype)

    def decode(
        self, encoded: Encoded, s: Tensor, masks: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The half that the style guides. Returns (B, 3, H, H), about [-1, 1], no tanh."""
        if (masks is None) != (self.high_pass is None):
            raise ValueError("masks belong to the high-pass option (w_hpf > 0): give both or none")
        h = encoded.bottleneck
        with autocast_to(self.compute_dtype, h.device):
            for block in self.decoder:
                h = block(h, s)
                if masks is not None and h.shape[2] in encoded.kept:
                    h = h + self._outline(encoded.kept[h.shape[2]], masks)
        # Outside: images in bfloat16 would be coarser than the 8 bits of real ones.
        return self.to_rgb(h.to(s.dtype))

    def _outline(self, kept: Tensor, masks: tuple[Tensor, Tensor]) -> Tensor:
        assert self.high_pass is not None
        size = kept.shape[2]
        mask = masks[0] if size == KEPT_SIZES[0] else masks[1]
        mask = F.interpolate(mask, size=(size, size), mode="bilinear")
        return self.high_pass(mask * kept)

    def forward(self, x: Tensor, s: Tensor, masks: tuple[Tensor, Tensor] | None = None) -> Tensor:
        return self.decode(self.encode(x), s, masks)


class ConcatGenerator(Generator):
    """G(x, c): the same body without a style. The label joins the image, depth-wise, so nothing
    can be encoded ahead of it. For rows A and B of the paper's ablation."""

    compiled_methods: ClassVar[tuple[str, ...]] = ("decode",)

    def __init__(self, label_dim: int, **sizes: Any) -> None:
        super().__init__(style_dim=0, channels=3 + label_dim, **sizes)

    def encode(self, x: Tensor) -> Encoded:
        """Hands on the source."""
        return Encoded(x, {})

    def decode(
        self, encoded: Encoded, s: Tensor, masks: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """The whole of G; s is a label (B, label_dim)."""
        both = super().encode(concatenate(encoded.bottleneck, s))
        return super().decode(both, s, masks)


class MappingForm(NamedTuple):
    """How F knows the domain: layers shared by all domains, then layers of each domain.

    Without layers per domain, an embedding of the domain joins the latent as a condition.
    """

    shared: int
    per_domain: int


MAPPING_FORMS = {
    "branches": MappingForm(shared=4, per_domain=4),  # the published form
    "heads": MappingForm(shared=6, per_domain=1),  # first arXiv version
    "conditional": MappingForm(shared=8, per_domain=0),  # for thousands of domains
}


class MappingNetwork(nn.Module):
    """F(z, y) -> s: an MLP of width 512 with ReLU between its layers, see `MAPPING_FORMS`."""

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
    """What E and D share in form: an image (B, 3, H, H) down to one vector (B, dim_out), no
    normalisation."""

    def __init__(self, image_size: int, base_width: int, max_width: int) -> None:
        halvings = int(math.log2(image_size)) - 2
        widths = widths_of(image_size, base_width, max_width, halvings)
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
    """E(x, y) -> s (B, style_dim): a trunk and one linear head per domain."""

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
    """E(x) -> z (B, style_dim), whatever the domain: row D of the paper's ablation."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(1, **sizes)

    def forward(self, x: Tensor, _y: Tensor) -> Tensor:
        return super().forward(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))


class Discriminator(nn.Module):
    """D(x, y) -> logit (B,): a trunk and one logit per domain, of which number y is returned."""

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
        return DiscriminatorOutput(
            self.head(self.trunk(x, double_backward=double_backward), y)[:, 0]
        )


class ClassifyingDiscriminator(nn.Module):
    """D(x) -> logit (B,), logits of the labels (B, num_labels): the trunk of the other one, real
    or fake told beside the labels (ACGAN). Row A of the paper's ablation."""

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


class Networks(NamedTuple):
    """The four networks, by the paper's letters."""

    G: Generator
    F: MappingNetwork
    E: StyleEncoder
    D: Discriminator

    def set_precision(self, policy: Policy) -> None:
        """Tell the parts what to compute in."""
        set_precision(self._asdict(), policy)


def build_networks(
    num_domains: int,
    image_size: int = 256,
    base_width: int = 0,
    max_width: int = 0,
    latent_dim: int = 16,
    style_dim: int = 64,
    mapping_dim: int = 512,
    mapping: str = "branches",
    w_hpf: float = 0,
) -> Networks:
    """Build G, F, E and D, initialised from torch's current random state."""
    widths = {"image_size": image_size, "base_width": base_width, "max_width": max_width}
    return Networks(
        G=Generator(style_dim=style_dim, w_hpf=w_hpf, **widths),
        F=MappingNetwork(num_domains, latent_dim, style_dim, mapping_dim, mapping),
        E=StyleEncoder(num_domains, style_dim=style_dim, **widths),
        D=Discriminator(num_domains, **widths),
    )
