"""Images: bytes to pixels, the augmentation of training, and pixels to smaller bytes.

Everything ends as 8-bit RGB, upright. Colour profiles are neither applied nor kept.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch.nn import functional

from stargan_dist.errors import UserError

MAX_PIXELS = 2**26  # 8192 × 8192; a header that claims more is refused before it is decoded
# PIL's own limit is higher and, up to twice of it, a mere warning.
Image.MAX_IMAGE_PIXELS = None

# What PIL may try. It knows many more, and runs other programs for some (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
JPEG_START = b"\xff\xd8\xff"

TURNED = (5, 6, 7, 8)  # the EXIF orientations that swap width and height

# A reduced JPEG keeps at least so many pixels per pixel of the result, on each axis.
KEPT = 1.5

Box = tuple[float, float, float, float]  # left, top, right, bottom


@contextmanager
def _opened(data: bytes) -> Iterator[ImageFile]:
    """The image whose header stands in `data`; PIL's errors within become UserErrors."""
    if not data:
        raise UserError("0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{image.width} × {image.height} pixels are more than {MAX_PIXELS}")
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError("not an image that can be decoded (" + ", ".join(FORMATS) + ")") from error
    except Exception as error:  # PIL's decoders raise nearly anything on damaged data
        reason = str(error).partition("\n")[0] or repr(error)
        kind = "truncated" if "truncated" in reason.lower() else "damaged"
        raise UserError(f"{kind}: {reason}") from error


def _to_rgb(image: ImageFile) -> Image.Image:
    """Decode an opened image: RGB, upright, over white where it is transparent."""
    if image.mode in ("I", "F"):
        raise UserError("pixel values of 32 bits have no known range: convert to 8 or 16 bits")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):  # `convert` would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:  # what alpha hides is arbitrary, and must not show
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(data: bytes) -> Image.Image:
    """Decode to RGB, upright according to EXIF, transparency over white.

    Raises:
        UserError: not an image, damaged, larger than MAX_PIXELS, or of 32-bit values.
    """
    with _opened(data) as image:
        return _to_rgb(image)


def examine(data: bytes) -> Image.Image:
    """Decode what is to become a training image: as `decode`, and it must be a single still.

    Raises:
        UserError: as of `decode`; or animated; or of several pages.
    """
    with _opened(data) as image:
        # MPO is what phones write for one photo: a JPEG with more behind it.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1 and image.format == "TIFF":
            raise UserError(f"several pages ({frames}): one image per file is needed")
        if frames > 1:
            raise UserError(f"animated ({frames} frames): a still image is needed")
        return _to_rgb(image)


def reencode(image: Image.Image, *, crop: int, size: int, form: str, quality: int) -> bytes:
    """Encode for storage, smaller if asked to. Equal images give equal bytes, without metadata.

    Args:
        crop: cut out a central square of at most so many pixels a side; 0: none.
        size: reduce the shorter side to this, never enlarge it; 0: none.
        form: jpeg (4:4:4), png or webp.
        quality: of jpeg and webp, 0 to 100.

    Raises:
        UserError: too long a side for the format.
    """
    side = min(crop, *image.size)
    width, height = (side, side) if crop else image.size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.crop((left, top, left + width, top + height))
    shrink = size / min(width, height)
    if 0 < shrink < 1:
        # Lanczos loses least of what the antialiased, bilinear resize of training will keep.
        shape = round(width * shrink), round(height * shrink)
        image = image.resize(shape, Image.Resampling.LANCZOS)
    return _encode(image, form, quality)


def _encode(image: Image.Image, form: str, quality: int, *, optimize: bool = True) -> bytes:
    """Encode; `optimize` fits a JPEG's Huffman code to its image."""
    options: dict[str, Any] = {
        "jpeg": {"quality": quality, "subsampling": 0, "optimize": optimize},
        "png": {},
        "webp": {"quality": quality},
    }[form]
    image.info = {}  # some encoders write comments, profiles and transparency from here
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **options)
    except (OSError, ValueError) as error:
        if optimize:  # PIL's buffer is too small for the optimized JPEG of mere noise
            return _encode(image, form, quality, optimize=False)
        raise UserError(f"{image.width} × {image.height} pixels as {form}: {error}") from error
    return buffer.getvalue()


def to_array(image: Image.Image) -> np.ndarray:
    """RGB image -> uint8 (3, H, W)."""
    return _planar(np.asarray(image), flip=False)


def _planar(pixels: np.ndarray, *, flip: bool) -> np.ndarray:
    """(H, W, 3) -> (3, H, W), mirrored left to right if `flip`; one copy does both."""
    return np.ascontiguousarray((pixels[:, ::-1] if flip else pixels).transpose(2, 0, 1))


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Resize to size × size without augmentation -> uint8 (3, size, size)."""
    return to_array(image.resize((size, size), Image.Resampling.BILINEAR))


def crop_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """A random crop of 0.8–1 of the area, ratio 0.9–1.1: (left, top, right, bottom), pixels.

    The box is not rounded to pixels. One that would stick out is shrunk to fit.
    """
    area = width * height * rng.uniform(0.8, 1.0)
    ratio = np.exp(rng.uniform(np.log(0.9), np.log(1.1)))
    w, h = min(np.sqrt(area * ratio), width), min(np.sqrt(area / ratio), height)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return left, top, min(left + w, width), min(top + h, height)


def draw(width: int, height: int, rng: np.random.Generator) -> tuple[Box, bool]:
    """With p = 0.5 a random crop, else all; then whether to flip, p = 0.5."""
    box = crop_box(width, height, rng) if rng.random() < 0.5 else (0, 0, width, height)
    return box, bool(rng.random() < 0.5)


def augment(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """With p = 0.5 a random resized crop, then a horizontal flip with p = 0.5.

    Crop and resize are one bilinear, antialiased `resize`. Returns uint8 (3, size, size).
    """
    box, flip = draw(image.width, image.height, rng)
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return _planar(np.asarray(resized), flip=flip)


def load_augmented(data: bytes, size: int, rng: np.random.Generator, *, scaled: bool) -> np.ndarray:
    """Decode and `augment` -> uint8 (3, size, size).

    Args:
        scaled: JPEGs take a faster way by the same draws: large ones are decoded at a reduced
            scale, and all are resized in fixed point (`resample`). Else, and for the rest, the
            result is that of `augment` bit for bit.

    Raises:
        UserError: as of `decode`.
    """
    if not (scaled and data.startswith(JPEG_START)):
        return augment(decode(data), size, rng)
    with _opened(data) as image:
        upright = image.size[::-1] if _orientation(image) in TURNED else image.size
        box, flip = draw(*upright, rng)
        reduction = _reduction(box, size)
        pixels = _decode_reduced(image, data, reduction)
    left, top, right, bottom = (edge / reduction for edge in box)
    return _planar(resample(pixels, (left, top, right, bottom), size), flip=flip)


def _orientation(image: ImageFile) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _reduction(box: Box, size: int) -> int:
    """1, 2, 4 or 8: by what to reduce a JPEG of which `box` is to become `size`."""
    left, top, right, bottom = box
    spare = min(right - left, bottom - top) / (KEPT * size)
    return max(r for r in (1, 2, 4, 8) if r <= max(spare, 1))


def _decode_reduced(image: ImageFile, data: bytes, reduction: int) -> np.ndarray:
    """Decode the JPEG that was opened from `data` -> uint8 (H, W, 3), upright, reduced."""
    width, height = image.width // reduction, image.height // reduction
    if image.mode == "RGB" and _orientation(image) == 1:
        # The same pixels as PIL's, sooner. What it refuses, PIL may yet decode, or say why not.
        with suppress(ValueError):
            return simplejpeg.decode_jpeg(data, min_width=width, min_height=height)
    image.draft("RGB", (width, height))
    return np.array(_to_rgb(image))


def resample(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """What `Image.resize` does with BILINEAR and `box`, several times as fast.

    torch's resize of uint8 uses vector instructions, but cuts off whole pixels only: see `_span`.
    The edges of the box come to lie up to half a pixel off, mostly a few hundredths.

    Args:
        pixels: uint8 (H, W, 3), writable (or torch warns).
        box: in pixels, within the image.

    Returns uint8 (size, size, 3).
    """
    left, top, right, bottom = box
    skip_x, x, step_x = _span(left, right, pixels.shape[1], size)
    skip_y, y, step_y = _span(top, bottom, pixels.shape[0], size)
    # In this order torch sees that channels come last, and needs no copy.
    part = torch.from_numpy(pixels)[y, x].unsqueeze(0).permute(0, 3, 1, 2)
    # A trifle more, lest a product just below a whole number cost a row.
    scale = (1 + 1e-6) / step_y, (1 + 1e-6) / step_x
    out = functional.interpolate(part, scale_factor=scale, mode="bilinear", antialias=True)
    return out[0, :, skip_y : skip_y + size, skip_x : skip_x + size].permute(1, 2, 0).numpy()


def _span(low: float, high: float, length: int, size: int) -> tuple[int, slice, float]:
    """How to resample [low, high) of an axis to `size`, beginning at the edge of a pixel.

    Beginning some results further out (`skip`) brings one that is to be at `low` to within a
    fraction of a pixel of it. What offset remains is turned into a change of scale that leaves
    the middle in place.

    Returns the number of results to skip, the pixels to read, and the pixels per result.
    """
    if high - low == length:
        return 0, slice(0, length), length / size
    skip = np.arange(int(low * size / (high - low)) + 1)
    begin = np.round(low - skip * (high - low) / size)
    step = ((low + high) / 2 - begin) / (skip + size / 2)
    step = np.minimum(step, (length - begin) / (skip + size))  # not beyond the last pixel
    error = np.maximum(abs(begin + skip * step - low), abs(begin + (skip + size) * step - high))
    best = error.argmin()
    first, last = int(begin[best]), begin[best] + (skip[best] + size + 1) * step[best]
    return int(skip[best]), slice(first, min(length, int(np.ceil(last)))), float(step[best])
