"""Literal forwards of the blocks: convolution and resizing one after the other, as in the paper.

The project's blocks fuse a convolution with the resizing beside it. Tests require their outputs to
equal these.
"""

import math
from types import MethodType

import torch.nn.functional as F
from torch import nn

from stargan_dist.nets.blocks import AdaINResBlock, ResBlock


def res_block(block, x):
    """Compute the output of a `ResBlock` for x (B, C, H, W)."""
    shortcut = block.conv1x1(x)
    h = nn.Conv2d.forward(block.conv1, F.leaky_relu(block.norm1(x), 0.2))
    if block.downsample:
        shortcut, h = F.avg_pool2d(shortcut, 2), F.avg_pool2d(h, 2)
    h = block.conv2(F.leaky_relu(block.norm2(h), 0.2))
    return (shortcut + h) / math.sqrt(2)


def adain_res_block(block, x, s):
    """Compute the output of an `AdaINResBlock` for x (B, C, H, W) and a style s."""
    h = F.leaky_relu(block.adain1(x, s), 0.2)
    if block.upsample:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        h = F.interpolate(h, scale_factor=2, mode="nearest")
    h = block.conv2(F.leaky_relu(block.adain2(nn.Conv2d.forward(block.conv1, h), s), 0.2))
    return (block.conv1x1(x) + h) / math.sqrt(2) if block.shortcut else h


FORWARDS = {ResBlock: res_block, AdaINResBlock: adain_res_block}


def make_plain(networks):
    """Replace the forward of every block by its literal one, in place; returns the networks.

    Args:
        networks: by letter.
    """
    for network in networks.values():
        for module in network.modules():
            if type(module) in FORWARDS:
                module.forward = MethodType(FORWARDS[type(module)], module)
    return networks
