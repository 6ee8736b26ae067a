"""A network for each domain, where others share one network or its trunk."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stargan_dist.nets.blocks import Encoded


class PerDomain(nn.ModuleList):
    """K networks of one form. Each sample passes through the network of its domain.

    The cost does not grow with K. In training mode, a batch must have equally many samples of each
    domain, in any order: recipes that take pairs do (`Recipe.takes_pairs`). All shapes are then
    known beforehand, so nothing is read from the device; and every network takes part in every
    pass on every rank, as the collectives of DDP and of ZeRO 3 require. In evaluation mode any
    labels are accepted. In exported graphs, which cannot depend on labels, every network computes
    every sample.

    Args:
        num_domains: K.
        build: builds the network of one domain.
    """

    def __init__(self, num_domains: int, build: Callable[[], nn.Module]) -> None:
        super().__init__(build() for _ in range(num_domains))

    def forward(self, x: Tensor, y: Tensor, *more: Tensor, **options: Any) -> Tensor:
        """Apply the networks.

        Args:
            x: (B, …).
            y: domains, int64 (B,).
            more: further inputs (B, …) of the networks.
            options: passed to every network.

        Returns:
            The outputs (B, …), in the order of x.
        """
        if torch.compiler.is_exporting():
            return _select([network(x, *more, **options) for network in self], y)
        order, sizes = y.argsort(stable=True), self._sizes(y)
        inputs = [t.index_select(0, order).split(sizes) for t in (x, *more)]
        parts = zip(self, *inputs, strict=True)
        outputs = [network(*part, **options) for network, *part in parts if len(part[0])]
        return torch.cat(outputs).index_select(0, order.argsort())

    def _sizes(self, y: Tensor) -> list[int]:
        """Return the number of samples of each domain."""
        if self.training:
            return [len(y) // len(self)] * len(self)
        sizes: list[int] = y.bincount(minlength=len(self)).tolist()
        return sizes


def encode_sources(encoders: PerDomain, x: Tensor, y: Tensor | None) -> Encoded:
    """Encode sources (B, 3, H, H) by the encoder of their domain y (B,), or by all if it is None.

    In training the domains are known. Pictures that are translated come without.
    """
    if y is None:
        return Encoded(torch.cat([encoder(x) for encoder in encoders], 1), {}, len(encoders))
    return Encoded(encoders(x, y), {})


def features_of_sources(encoded: Encoded, y_trg: Tensor) -> Tensor:
    """Return what `encode_sources` computed, of one encoder for each source.

    A source of unknown domain is taken for an image of the other one of two domains.
    """
    if encoded.candidates == 1:
        return encoded.bottleneck
    candidates = encoded.bottleneck.chunk(encoded.candidates, 1)
    return _select(candidates, encoded.candidates - 1 - y_trg)


class ContentGenerator(nn.Module):
    """Base of generators with an encoder for each domain of sources and a decoder for each target.

    Subclasses have `encode`, and a `decoder` of features (B, C, h, w), targets and styles.

    Args:
        num_domains: K.
    """

    encodes: ClassVar[bool] = True
    decoder: nn.Module

    def __init__(self, num_domains: int) -> None:
        super().__init__()
        self.candidates = num_domains  # of the features of a source whose domain is not known

    def encode(self, x: Tensor, masks: Tensor | None = None, y: Tensor | None = None) -> Encoded:
        """Return the features of sources x (B, 3, H, H) of domains y, if they are known."""
        raise NotImplementedError

    def decode(self, encoded: Encoded, c: Tensor) -> Tensor:
        """Return images (B, 3, H, H) of sources for c (B, K + n): targets, one-hot, and styles."""
        y_trg, styles = c[:, : self.candidates].argmax(1), c[:, self.candidates :]
        output: Tensor = self.decoder(features_of_sources(encoded, y_trg), y_trg, styles)
        return output

    def forward(self, x: Tensor, c: Tensor, masks: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x, masks), c)


def _select(outputs: Sequence[Tensor], y: Tensor) -> Tensor:
    """Return the output of each sample's domain."""
    selected = outputs[0]
    for domain, output in enumerate(outputs[1:], start=1):
        is_of_domain = (y == domain).view(-1, *[1] * (output.dim() - 1))
        selected = torch.where(is_of_domain, output, selected)
    return selected
