"""Pictures of no file, and animated ones of files."""

import numpy as np
from PIL import Image


def picture(width=32, height=32, seed=0):
    """Return a random smooth RGB image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def shape_and_duration(path):
    """Return size in pixels and duration in ms of a WebP. Equal frames are stored as one."""
    with Image.open(path) as image:
        milliseconds = 0
        for frame in range(image.n_frames):
            image.seek(frame)
            image.load()
            milliseconds += image.info["duration"]
        return image.size, milliseconds
