"""Networks whose weights no longer change: kernels are fused once instead of in every pass."""

from torch import nn

from stargan_dist.nets.blocks import ConvDownsample, UpsampleConv


def fuse_kernels(network: nn.Module) -> nn.Module:
    """Replace convolutions fused with a resizing by plain ones of the same kernel, in place.

    The outputs have the same bits. The names of the weights stay, their shapes change: such a
    network can be neither trained nor saved.
    """
    for module in [*network.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, ConvDownsample | UpsampleConv):
                setattr(module, name, _plain(child))
    return network


def _plain(layer: ConvDownsample | UpsampleConv) -> nn.Module:
    """Return the 4×4 convolution of stride 2, or its transpose, that a layer computes."""
    kind = nn.Conv2d if isinstance(layer, ConvDownsample) else nn.ConvTranspose2d
    plain = kind(layer.in_channels, layer.out_channels, 4, stride=2, padding=1, device="meta")
    plain.weight = nn.Parameter(layer.kernel().detach().contiguous(), requires_grad=False)
    plain.bias = layer.bias
    return plain
