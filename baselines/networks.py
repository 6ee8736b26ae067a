"""The blocks in the order of the paper: convolve, then resize, one after the other.

Ours fuse a convolution with the resizing beside it. They must equal these.
"""

import math
from types import MethodType

import torch.nn.functional as F
from torch import nn

from stargan_dist.nets.blocks import AdaINResBlock, ResBlock


def res_block(block, x):
    shortcut = block.conv1x1(x)
    h = nn.Conv2d.forward(block.conv1, F.leaky_relu(block.norm1(x), 0.2))
    if block.downsample:
        shortcut, h = F.avg_pool2d(shortcut, 2), F.avg_pool2d(h, 2)
    h = block.conv2(F.leaky_relu(block.norm2(h), 0.2))
    return (shortcut + h) / math.sqrt(2)


def adain_res_block(block, x, s):
    h = F.leaky_relu(block.adain1(x, s), 0.2)
    if block.upsample:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        h = F.interpolate(h, scale_factor=2, mode="nearest")
    h = block.conv2(F.leaky_relu(block.adain2(nn.Conv2d.forward(block.conv1, h), s), 0.2))
    return (block.conv1x1(x) + h) / math.sqrt(2) if block.shortcut else h


FORWARDS = {ResBlock: res_block, AdaINResBlock: adain_res_block}


def make_plain(networks):
    """Give every block of some networks its plain forward; returns the networks."""
    for network in networks:
        for module in network.modules():
            if type(module) in FORWARDS:
                module.forward = MethodType(FORWARDS[type(module)], module)
    return networks
