"""Images: bytes to pixels, the augmentation of training, and pixels to smaller bytes.

Everything ends as 8-bit RGB, upright. Colour profiles are neither applied nor kept.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
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
CROPS = 0.5  # the share of images of which training sees a random part, in StarGAN v2

Box = tuple[int, int, int, int]  # left, top, right, bottom, pixels


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

    As torchvision's RandomResizedCrop draws it, but for a box that would stick out: it is shrunk
    to fit.
    """
    area = width * height * rng.uniform(0.8, 1.0)
    ratio = np.exp(rng.uniform(np.log(0.9), np.log(1.1)))
    w = min(round(math.sqrt(area * ratio)), width)
    h = min(round(math.sqrt(area / ratio)), height)
    left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    return left, top, left + w, top + h


def draw(
    width: int, height: int, rng: np.random.Generator, crops: float = CROPS
) -> tuple[Box, bool]:
    """With p = `crops` a random crop, else all; then whether to flip, p = 0.5."""
    box = crop_box(width, height, rng) if rng.random() < crops else (0, 0, width, height)
    return box, bool(rng.random() < 0.5)


def augment(
    image: Image.Image, size: int, rng: np.random.Generator, crops: float = CROPS
) -> np.ndarray:
    """With p = `crops` a random resized crop, then a horizontal flip with p = 0.5.

    Bilinear and antialiased, bit for bit as torchvision's. Returns uint8 (3, size, size).
    """
    box, flip = draw(image.width, image.height, rng, crops)
    return _finished(image.crop(box), size, flip)


def _finished(
    image: Image.Image,
    size: int,
    flip: bool,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resize what lies in the box, or all -> uint8 (3, size, size), mirrored if `flip`."""
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return _planar(np.asarray(resized), flip=flip)


# The fast way.


def load_augmented(
    data: bytes, size: int, rng: np.random.Generator, *, fast: bool, crops: float = CROPS
) -> np.ndarray:
    """Decode and `augment` -> uint8 (3, size, size).

    Args:
        fast: plain JPEGs take a faster way by the same draws: large ones are decoded at a reduced
            scale, and others are resized by vector instructions. Else, and for all other images,
            the result is that of `augment` bit for bit.

    Raises:
        UserError: as of `decode`.
    """
    shape = _plain_jpeg_size(data) if fast else None
    if shape is None:
        return augment(decode(data), size, rng, crops)
    width, height = shape
    box, flip = draw(width, height, rng, crops)
    scale = _reduction(box, size)
    try:
        pixels = simplejpeg.decode_jpeg(data, min_width=width // scale, min_height=height // scale)
    except ValueError:  # it is strict: PIL may yet decode it, or say what is wrong
        return _finished(decode(data).crop(box), size, flip)
    if scale == 1:
        return _planar(_resized(pixels, box, size), flip=flip)
    left, top, right, bottom = (edge / scale for edge in box)
    return _finished(Image.fromarray(pixels), size, flip, (left, top, right, bottom))


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG in colour that is not turned; None for anything else."""
    # Orientation stands in EXIF, or in XMP.
    if not data.startswith(JPEG_START) or b"Exif" in data or b"ns.adobe.com" in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    plain = colours == "YCbCr" and width * height <= MAX_PIXELS
    return (width, height) if plain else None


def _reduction(box: Box, size: int) -> int:
    """The scale to decode a JPEG at, of 1/1, 1/2, 1/4 and 1/8, whose box is to become `size`."""
    left, top, right, bottom = box
    spare = min(right - left, bottom - top) / (KEPT * size)
    return max(r for r in (1, 2, 4, 8) if r <= max(spare, 1))


def _resized(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """What `image.crop(box).resize((size, size), BILINEAR)` does, several times as fast.

    uint8 (H, W, 3) -> (size, size, 3)
    """
    left, top, right, bottom = box
    # In this order torch sees that channels come last, and needs no copy.
    part = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)[..., top:bottom, left:right]
    out = functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
    return out[0].permute(1, 2, 0).numpy()
