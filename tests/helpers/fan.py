"""A plain forward of the landmark network, from a state dict with its public names.

Written from the documented layout. No modules of this project are used.
"""

import torch
import torch.nn.functional as F


def norm(p, name, x):
    shape = (1, -1, 1, 1)
    mean, variance = (p[f"{name}.running_{n}"].reshape(shape) for n in ("mean", "var"))
    scaled = (x - mean) / torch.sqrt(variance + 1e-5)
    return scaled * p[f"{name}.weight"].reshape(shape) + p[f"{name}.bias"].reshape(shape)


def block(p, name, x):
    a = F.conv2d(F.relu(norm(p, f"{name}.bn1", x)), p[f"{name}.conv1.weight"], padding=1)
    b = F.conv2d(F.relu(norm(p, f"{name}.bn2", a)), p[f"{name}.conv2.weight"], padding=1)
    c = F.conv2d(F.relu(norm(p, f"{name}.bn3", b)), p[f"{name}.conv3.weight"], padding=1)
    if f"{name}.downsample.2.weight" in p:
        x = F.relu(norm(p, f"{name}.downsample.0", x))
        x = F.conv2d(x, p[f"{name}.downsample.2.weight"])
    return torch.cat((a, b, c), 1) + x


def with_coordinates(x):
    size = x.shape[2]
    row, column = torch.zeros(2, size, size, dtype=x.dtype)
    for i in range(size):
        row[i, :] = column[:, i] = 2 * i / (size - 1) - 1
    radius = torch.sqrt(row**2 + column**2)
    planes = torch.stack((row, column, radius / radius.max()))
    return torch.cat((x, planes.expand(len(x), 3, size, size)), 1)


def hourglass(p, x, level):
    up = block(p, f"m0.b1_{level}", x)
    low = block(p, f"m0.b2_{level}", F.avg_pool2d(x, 2))
    low = hourglass(p, low, level - 1) if level > 1 else block(p, "m0.b2_plus_1", low)
    low = block(p, f"m0.b3_{level}", low)
    return up + low.repeat_interleave(2, 2).repeat_interleave(2, 3)


def heat_maps(p, x, input_size=256):
    """Return all heat maps of images x in [-1, 1]."""
    if x.shape[2] != input_size:
        x = F.interpolate(x, size=input_size, mode="bilinear", align_corners=False)
    x = (x + 1) / 2
    x = F.conv2d(with_coordinates(x), p["conv1.conv.weight"], p["conv1.conv.bias"], 2, 3)
    x = F.avg_pool2d(block(p, "conv2", F.relu(norm(p, "bn1", x))), 2)
    x = block(p, "conv4", block(p, "conv3", x))
    x = F.conv2d(with_coordinates(x), p["m0.coordconv.conv.weight"], p["m0.coordconv.conv.bias"])
    x = block(p, "top_m_0", hourglass(p, x, 4))
    x = F.conv2d(x, p["conv_last0.weight"], p["conv_last0.bias"])
    return F.conv2d(F.relu(norm(p, "bn_end0", x)), p["l0.weight"], p["l0.bias"])


MOVES = [  # the last landmark of each group, and what becomes of its maps: rows down, power
    (7, []), (24, [(0, 3)]), (32, []), (50, [(7, 2)]), (51, [(0, 1)]), (54, [(-4, 1)]),
    (59, [(-8, 4)]), (75, [(8, 3), (24, 1)]), (81, [(8, 4)]), (87, [(-8, 4)]), (95, [(2, 3)]),
    (97, [(0, 1)]),
]  # fmt: skip


def plain_masks(maps, size=256):
    """Return the two masks (B, 2, size, size) of heat maps of the 98 landmarks of WFLW, map by map.

    Written from the documented table of what becomes of each landmark.
    """
    maps = F.interpolate(maps[:, :98], size=size, mode="bilinear", align_corners=True).clone()
    maps[maps < 0.1] = 0
    masks = maps.new_zeros(len(maps), 2, size, size)
    for image in range(len(maps)):
        for i in range(98):
            low, high = maps[image, i].min(), maps[image, i].max()
            h = (maps[image, i] - low) / (high - low + 1e-6)
            heat = sum((down(h, rows) ** power for rows, power in moves_of(i)), 0 * h)
            masks[image, 0] += heat
            if 51 <= i <= 75 or i >= 96:
                masks[image, 1] += heat
    return masks.clamp(0, 1)


def moves_of(landmark):
    """Return (rows, power) of the copies of a landmark's map that are summed."""
    if landmark in (33, 46, 76, 82):
        return []
    return next(moves for last, moves in MOVES if landmark <= last)


def down(h, rows):
    """Move a map down; what leaves it at one edge enters at the other."""
    return torch.cat((h[-rows:], h[:-rows])) if rows else h
