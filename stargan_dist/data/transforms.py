"""Images: bytes to pixels, and the augmentation of training."""

import io

import numpy as np
from PIL import Image, ImageOps

from stargan_dist.errors import UserError

MAX_PIXELS = 2**26  # 8192 × 8192; a header that claims more is refused before it is decoded


def decode(data: bytes) -> Image.Image:
    """Decode to RGB, upright according to EXIF.

    Raises:
        UserError: not an image, damaged, or larger than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{image.width} × {image.height} pixels are more than {MAX_PIXELS}")
            return ImageOps.exif_transpose(image).convert("RGB")
    except UserError:
        raise
    except Exception as error:  # PIL's decoders raise nearly anything on damaged data
        raise UserError(str(error).splitlines()[0] if str(error) else repr(error)) from error


def to_array(image: Image.Image) -> np.ndarray:
    """RGB image -> uint8 (3, H, W)."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Resize to size × size without augmentation -> uint8 (3, size, size)."""
    return to_array(image.resize((size, size), Image.Resampling.BILINEAR))


def crop_box(
    width: int, height: int, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random crop of 0.8–1 of the area, ratio 0.9–1.1: (left, top, right, bottom), pixels.

    The box is not rounded to pixels. One that would stick out is shrunk to fit.
    """
    area = width * height * rng.uniform(0.8, 1.0)
    ratio = np.exp(rng.uniform(np.log(0.9), np.log(1.1)))
    w, h = min(np.sqrt(area * ratio), width), min(np.sqrt(area / ratio), height)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return left, top, min(left + w, width), min(top + h, height)


def augment(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """With p = 0.5 a random resized crop, then a horizontal flip with p = 0.5.

    Crop and resize are one bilinear, antialiased `resize`. Returns uint8 (3, size, size).
    """
    box = crop_box(image.width, image.height, rng) if rng.random() < 0.5 else None
    pixels = to_array(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return np.ascontiguousarray(pixels[:, :, ::-1]) if rng.random() < 0.5 else pixels
