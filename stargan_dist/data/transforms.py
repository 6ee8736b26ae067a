"""Image decoding, training augmentation, and re-encoding for storage.

All results are upright 8-bit RGB. Colour profiles are neither applied nor kept.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch.nn import functional

from stargan_dist.errors import UserError

MAX_PIXELS = 2**26  # 8192 × 8192; larger images are rejected by their header, before decoding
# Replaced by MAX_PIXELS: PIL's limit is higher, and up to twice the limit PIL only warns.
Image.MAX_IMAGE_PIXELS = None

# Formats that PIL may decode. It has many more decoders, and some run other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
JPEG_START = b"\xff\xd8\xff"

# A JPEG decoded at a reduced scale has at least this many pixels per pixel of the result, on each
# axis.
MIN_OVERSAMPLING = 1.5

Box = tuple[int, int, int, int]  # left, top, right, bottom, pixels


class Crop(NamedTuple):
    """A random crop of a training image. The defaults are those of StarGAN v2.

    Attributes:
        probability: of a crop; otherwise the whole image is kept.
        area: smallest and largest share of the area.
        ratio: smallest and largest aspect ratio.
    """

    probability: float = 0.5
    area: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (0.9, 1.1)


RANDOM_CROP = Crop()
NO_CROP = Crop(0.0)


# PIL imports its formats with the first image. If a thread does that while workers are forked (one
# writes the grids of an evaluation), they wait forever for its import to end.
Image.init()


@contextmanager
def _open_image(data: bytes, max_pixels: int | None = None) -> Iterator[ImageFile]:
    """Open an encoded image and check its size. PIL's errors in the block become UserErrors."""
    max_pixels = max_pixels or MAX_PIXELS
    if not data:
        raise UserError("0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UserError(
                    f"{image.width} × {image.height} pixels are more than {max_pixels}: "
                    "reduce the image"
                )
            yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError("not an image that can be decoded (" + ", ".join(FORMATS) + ")") from error
    except Exception as error:  # PIL's decoders raise nearly anything on damaged data
        reason = str(error).partition("\n")[0] or repr(error)
        kind = "truncated" if "truncated" in reason.lower() else "damaged"
        raise UserError(f"{kind}: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to upright RGB; transparent images are composed over white.

    Raises:
        UserError: it has values of 32 bits.
    """
    if image.mode in ("I", "F"):
        raise UserError("pixel values of 32 bits have no known range: convert them to 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # `convert` would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:  # colours under alpha are arbitrary
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(data: bytes, max_pixels: int | None = None) -> Image.Image:
    """Decode an image to RGB, upright according to EXIF, transparency over white.

    Args:
        data: encoded image. Of an animation, the first frame is decoded.
        max_pixels: largest number of pixels, known before decoding. None: MAX_PIXELS.

    Raises:
        UserError: not an image, damaged, with too many pixels, or with 32-bit values.
    """
    with _open_image(data, max_pixels) as image:
        return to_rgb(image)


def decode_still(data: bytes) -> Image.Image:
    """Decode a future training image, as `decode` does, but reject anything but a single still.

    Raises:
        UserError: as of `decode`; or it is animated or has several pages.
    """
    with _open_image(data) as image:
        # Phones store a single photo as MPO: a JPEG with further images appended.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1 and image.format == "TIFF":
            raise UserError(f"several pages ({frames}): store one image per file")
        if frames > 1:
            raise UserError(f"animated ({frames} frames): use a still image")
        return to_rgb(image)


def reencode(image: Image.Image, *, crop: int, size: int, image_format: str, quality: int) -> bytes:
    """Encode an image for storage, optionally cropped and reduced.

    Equal images give equal bytes, without metadata.

    Args:
        image: RGB image.
        crop: side of a central square crop, in pixels, at most; 0: no crop.
        size: length to which the shorter side is reduced, in pixels; it is never enlarged; 0: keep.
        image_format: jpeg (4:4:4), png or webp.
        quality: quality of jpeg and webp, 0 to 100.

    Raises:
        UserError: a side is too long for the format.
    """
    side = min(crop, *image.size)
    width, height = (side, side) if crop else image.size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    image = image.crop((left, top, left + width, top + height))
    shrink = size / min(width, height)
    if 0 < shrink < 1:
        # Lanczos preserves most of what the antialiased bilinear resize of training keeps.
        shape = round(width * shrink), round(height * shrink)
        image = image.resize(shape, Image.Resampling.LANCZOS)
    return _encode(image, image_format, quality)


def _encode(image: Image.Image, image_format: str, quality: int, *, optimize: bool = True) -> bytes:
    """Encode an image. `optimize` fits the Huffman code of a JPEG to the image."""
    options: dict[str, Any] = {
        "jpeg": {"quality": quality, "subsampling": 0, "optimize": optimize},
        "png": {},
        "webp": {"quality": quality},
    }[image_format]
    image.info = {}  # some encoders copy comments, profiles and transparency from it
    buffer = io.BytesIO()
    try:
        image.save(buffer, image_format, **options)
    except (OSError, ValueError) as error:
        if optimize:  # PIL's buffer is too small for an optimized JPEG of pure noise
            return _encode(image, image_format, quality, optimize=False)
        raise UserError(
            f"cannot encode {image.width} × {image.height} pixels as {image_format}: {error}"
        ) from error
    return buffer.getvalue()


def to_array(image: Image.Image) -> np.ndarray:
    """Convert an RGB image to uint8 (3, H, W)."""
    return _planar(np.asarray(image), flip=False)


def _planar(pixels: np.ndarray, *, flip: bool) -> np.ndarray:
    """Convert (H, W, 3) to (3, H, W), mirrored left to right if `flip`."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    # A second copy, which torch vectorises, is faster than one that reads pixels backwards.
    return torch.from_numpy(planes).flip(2).numpy() if flip else planes


def resize(image: Image.Image, size: int) -> np.ndarray:
    """Resize an image without augmentation; return uint8 (3, size, size)."""
    return to_array(image.resize((size, size), Image.Resampling.BILINEAR))


def crop_box(width: int, height: int, rng: np.random.Generator, crop: Crop = RANDOM_CROP) -> Box:
    """Draw a random crop.

    The distribution is that of torchvision's RandomResizedCrop, except that a box that exceeds the
    image is shrunk to fit.
    """
    area = width * height * rng.uniform(*crop.area)
    low, high = crop.ratio
    ratio = np.exp(rng.uniform(np.log(low), np.log(high)))
    w = min(round(math.sqrt(area * ratio)), width)
    h = min(round(math.sqrt(area / ratio)), height)
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return left, top, left + w, top + h


def draw_augmentation(
    width: int, height: int, rng: np.random.Generator, crop: Crop = RANDOM_CROP
) -> tuple[Box, bool]:
    """Draw the parameters of `augment`: the box to keep, and whether to flip it."""
    cropped = rng.random() < crop.probability
    box = crop_box(width, height, rng, crop) if cropped else (0, 0, width, height)
    return box, bool(rng.random() < 0.5)


def augment(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    crop: Crop = RANDOM_CROP,
) -> np.ndarray:
    """Apply a random resized crop, then a horizontal flip with p = 0.5.

    Resizing is bilinear and antialiased. The result, uint8 (3, size, size), equals torchvision's
    bit for bit.
    """
    box, flip = draw_augmentation(image.width, image.height, rng, crop)
    return _resize_and_flip(image.crop(box), size, flip)


def _resize_and_flip(
    image: Image.Image,
    size: int,
    flip: bool,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resize the image or its box to uint8 (3, size, size), mirrored if `flip`."""
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return _planar(np.asarray(resized), flip=flip)


# Fast decoding.


def load_augmented(
    data: bytes,
    size: int,
    rng: np.random.Generator,
    *,
    fast_decoding: bool,
    crop: Crop = RANDOM_CROP,
) -> np.ndarray:
    """Decode and augment an image; return uint8 (3, size, size).

    Args:
        data: encoded image.
        size: width and height of the result, in pixels.
        rng: random generator of the augmentation.
        fast_decoding: process plain JPEGs faster, with the same random draws: large ones are
            decoded at a reduced scale, others are resized with vector instructions. Otherwise, and
            for all other images, the result is that of `augment` bit for bit.
        crop: random crop of the image.

    Raises:
        UserError: as of `decode`.
    """
    shape = _plain_jpeg_size(data) if fast_decoding else None
    if shape is None:
        return augment(decode(data), size, rng, crop)
    width, height = shape
    box, flip = draw_augmentation(width, height, rng, crop)
    scale = _scale_denominator(box, size)
    try:
        pixels = simplejpeg.decode_jpeg(data, min_width=width // scale, min_height=height // scale)
    except ValueError:  # simplejpeg is strict: PIL may decode it, or report the fault
        return _resize_and_flip(decode(data).crop(box), size, flip)
    if scale == 1:
        return _planar(_resize_crop(pixels, box, size), flip=flip)
    left, top, right, bottom = (edge / scale for edge in box)
    return _resize_and_flip(Image.fromarray(pixels), size, flip, (left, top, right, bottom))


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a colour JPEG without an orientation; None for other images."""
    # The orientation is stored in EXIF or in XMP.
    if not data.startswith(JPEG_START) or b"Exif" in data or b"ns.adobe.com" in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    plain = colours == "YCbCr" and width * height <= MAX_PIXELS
    return (width, height) if plain else None


def _scale_denominator(box: Box, size: int) -> int:
    """Return the largest of 1, 2, 4, 8 by which the decoder may divide the scale of a JPEG.

    Resizing the box to `size` must still reduce it by MIN_OVERSAMPLING or more; else it is 1.
    """
    left, top, right, bottom = box
    surplus = min(right - left, bottom - top) / (MIN_OVERSAMPLING * size)
    return max(d for d in (1, 2, 4, 8) if d <= max(surplus, 1))


def _resize_crop(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Compute `image.crop(box).resize((size, size), BILINEAR)`, several times as fast.

    Args:
        pixels: uint8 (H, W, 3).
        box: crop to resize.
        size: width and height of the result, in pixels.

    Returns:
        uint8 (size, size, 3).
    """
    left, top, right, bottom = box
    # This order of operations keeps the channels-last layout, so that torch needs no copy.
    crop = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)[..., top:bottom, left:right]
    out = functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)
    return out[0].permute(1, 2, 0).numpy()
