"""A landmark network made by hand, and photographs of the face that it finds."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from stargan_dist.faces import alignment
from stargan_dist.models.landmarks import Description, SavedLandmarks
from stargan_dist.nets.fan import FAN
from stargan_dist.nets.masks import Part

GREY, RADIUS = (90, 90, 90), 90  # of the face
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # of the dots: eyes and mouth
FACE = {"left_eye": [0], "right_eye": [1], "mouth": [2]}
# Where the dots are in the frame of 256 px.
REFERENCE = np.array([[90.0, 110.0], [166.0, 110.0], [128.0, 190.0]])


@torch.no_grad()
def dot_finder() -> SavedLandmarks:
    """Return a network that finds a red, a green and a blue dot.

    Its first convolution is positive in their colours alone. All blocks are identities, except that
    the smaller sizes of the hourglass add nothing.
    """
    network = FAN(num_maps=3, width=16, input_size=256)
    for name, parameter in network.named_parameters():
        is_scale = ("bn" in name or "downsample.0" in name) and name.endswith("weight")
        parameter.fill_(float(is_scale))
    colours = 2 * torch.eye(3) - 1
    network.conv1.conv.weight[:3, :3, 3:5, 3:5] = colours[:, :, None, None] / 4
    identities = (network.m0.coordconv.conv, network.conv_last0, network.l0,
                  network.conv2.downsample[2], network.conv4.downsample[2])  # fmt: skip
    for convolution in identities:
        torch.nn.init.dirac_(convolution.weight)
    torch.nn.init.dirac_(network.m0.b3_4.conv1.weight).neg_()
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return SavedLandmarks("dots", tensors, Description(256, (Part((0,)),))).check()


def photograph(width: int, height: int, transform) -> Image.Image:
    """Draw a face whose dots are at REFERENCE in the frame of 256 px that a transform leads to.

    It is a grey circle. The dots are brightest in the middle.
    """
    image = Image.new("RGB", (4 * width, 4 * height), (190, 180, 170))
    canvas, to_photograph = ImageDraw.Draw(image), 4 * alignment.invert(transform)
    scale = np.sqrt(np.linalg.det(to_photograph[:, :2]))

    def disc(point, radius, colour):
        (centre,) = alignment.apply(to_photograph, np.array([point], float))
        canvas.ellipse([*(centre - scale * radius), *(centre + scale * radius)], colour)

    disc((128, 140), RADIUS, GREY)
    for point, colour in zip(REFERENCE, COLOURS, strict=True):
        for radius in range(16, 0, -1):
            mixed = np.average([colour, GREY], 0, [17 - radius, radius - 1])
            disc(point, radius, tuple(mixed.astype(int)))
    return image.reduce(4)


def placed(x: float, y: float, width: float, degrees: float):
    """Return the transform of a face: to the frame from a square of a photograph.

    Args:
        x, y: centre of the square.
        width: of its sides, in pixels.
        degrees: its clockwise rotation.
    """
    turn = 256 / width * np.exp(-1j * np.deg2rad(degrees))
    shift = complex(128, 128) - turn * complex(x, y)
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def centres(image: Image.Image):
    """Return the centres of the three dots in an aligned picture, in pixels of 256, (3, 2)."""
    pixels = np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC)).astype(float)
    y, x = np.indices((256, 256)) + 0.5
    found = []
    for i, (column, row) in enumerate(REFERENCE):
        others = [j for j in range(3) if j != i]
        heat = (pixels[:, :, i] - pixels[:, :, others].max(2) - 60).clip(0)
        heat = np.where(np.hypot(x - column, y - row) < 40, heat, 0)  # not a mirror image
        found.append([(heat * x).sum() / heat.sum(), (heat * y).sum() / heat.sum()])
    return np.array(found)
