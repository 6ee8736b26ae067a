"""Pictures of any kind and size, as sources of a network, and its outputs as the same kind.

| kind | values |
|---|---|
| path or URL | any image format of `data/transforms.py` |
| `PIL.Image.Image` | any mode; transparency is composed over white |
| `numpy.ndarray` uint8 (H, W, 3) or (H, W) | 0 to 255 |
| `torch.Tensor` uint8 (3, H, W) | 0 to 255 |
| `torch.Tensor` float (3, H, W) | -1 to 1 |

A batch, (N, H, W, 3) or (N, 3, H, W), is many pictures.
"""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stargan_dist import storage
from stargan_dist.data import transforms
from stargan_dist.data.batch import to_uint8
from stargan_dist.errors import UserError, explained

Picture = str | PathLike[str] | Image.Image | np.ndarray | Tensor
KINDS = "a path, a PIL image, a uint8 array (H, W, 3), or a tensor (3, H, W), uint8 or in [-1, 1]"


class Fitted(NamedTuple):
    """A picture in the square of a network.

    Attributes:
        pixels: uint8 (3, size, size).
        box: left, top, right, bottom of the part of the square that shows the picture.
    """

    pixels: Tensor
    box: tuple[int, int, int, int]


def _crop(image: Image.Image, size: int) -> Fitted:
    """Cut out the largest central square."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return _stretch(image.crop((left, top, left + side, top + side)), size)


def _stretch(image: Image.Image, size: int) -> Fitted:
    """Ignore the aspect ratio, as training does."""
    return Fitted(torch.from_numpy(transforms.resize(image, size)), (0, 0, size, size))


def _pad(image: Image.Image, size: int) -> Fitted:
    """Show the whole picture, and repeat its border around it."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = transforms.to_array(image.resize((width, height), Image.Resampling.BILINEAR))
    left, top = (size - width) // 2, (size - height) // 2
    margins = ((0, 0), (top, size - height - top), (left, size - width - left))
    pixels = torch.from_numpy(np.pad(small, margins, mode="edge"))
    return Fitted(pixels, (left, top, left + width, top + height))


FITS: dict[str, Callable[[Image.Image, int], Fitted]] = {
    "crop": _crop,
    "pad": _pad,
    "stretch": _stretch,
}


def fit(picture: Picture, size: int, how: str = "crop") -> Fitted:
    """Fit a picture into a square.

    Args:
        size: pixels per side.
        how: `crop`: the central square; `pad`: the whole picture with its border repeated, which is
            cut off the outputs; `stretch`: the whole picture, distorted.

    Raises:
        UserError: it is not a picture, cannot be read, or has too many pixels.
    """
    if how not in FITS:
        raise UserError(f"fit: {how!r} is not one of {', '.join(FITS)}")
    return FITS[how](to_image(picture), size)


def to_image(picture: Picture) -> Image.Image:
    """Convert a picture of any kind to an RGB image. Raises UserError as `fit` does."""
    if isinstance(picture, str | PathLike):
        return read_image(str(picture))
    if isinstance(picture, Image.Image):
        return transforms.to_rgb(picture)
    if isinstance(picture, Tensor):
        return _of_tensor(picture)
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    raise UserError(f"{type(picture).__name__} is not a picture: give {KINDS}")


def read_image(url: str) -> Image.Image:
    """Read an image file. Raises UserError, which names the file."""
    try:
        return transforms.decode(storage.read_bytes(url))
    except (OSError, UserError) as error:
        raise explained(f"cannot read the image {url}: {error}", error) from error


def _of_tensor(tensor: Tensor) -> Image.Image:
    if tensor.dim() != 3 or tensor.shape[0] != 3 or not tensor.numel():
        raise UserError(f"a tensor of shape {tuple(tensor.shape)} is not a picture: give {KINDS}")
    if tensor.is_floating_point():
        if not tensor.isfinite().all():
            raise UserError("a tensor with values that are not finite is not a picture")
        tensor = to_uint8(tensor)
    return _of_array(tensor.permute(1, 2, 0).cpu().numpy())


def _of_array(array: np.ndarray) -> Image.Image:
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not is_picture or array.dtype != np.uint8 or not array.size:
        raise UserError(
            f"an array of shape {array.shape} and type {array.dtype} is not a picture: give {KINDS}"
        )
    return transforms.to_rgb(Image.fromarray(array))


# Outputs.


def to_image_of_output(output: Tensor) -> Image.Image:
    """Convert an output, float (3, H, W) in about [-1, 1], to an image."""
    return Image.fromarray(to_uint8(output).permute(1, 2, 0).cpu().contiguous().numpy())


def _to_array(output: Tensor) -> np.ndarray:
    return np.asarray(to_image_of_output(output))


def _to_unit(output: Tensor) -> Tensor:
    return output.clamp(-1, 1)


class Kind(NamedTuple):
    """How outputs are returned: as the pictures that were given.

    Attributes:
        convert: converts an output, float (3, H, W) in about [-1, 1].
        join: joins nested lists of converted outputs, if the pictures came as one batch.
    """

    convert: Callable[[Tensor], Any]
    join: Callable[[list[Any]], Any]


def _kind(pictures: Any) -> Kind:
    if isinstance(pictures, Tensor):
        return Kind(_to_unit if pictures.is_floating_point() else to_uint8, _stack)
    return (
        Kind(_to_array, np.array)
        if isinstance(pictures, np.ndarray)
        else Kind(to_image_of_output, list)
    )


def _stack(tensors: list[Any]) -> Tensor:
    """Stack nested lists of tensors."""
    return torch.stack([_stack(t) if isinstance(t, list) else t for t in tensors])


class Pictures(NamedTuple):
    """Pictures as they were given.

    Attributes:
        items: all of them.
        is_one: a single one was given, not a list or batch.
        kind: how outputs are returned.
    """

    items: list[Picture]
    is_one: bool
    kind: Kind

    def restore(self, rows: list[Any]) -> Any:
        """Return converted outputs, one or a list for each picture, as the pictures were given."""
        return rows[0] if self.is_one else self.kind.join(rows)


def unpack(pictures: Picture | Sequence[Picture]) -> Pictures:
    """Return one or many pictures as a list.

    Raises:
        UserError: there are none.
    """
    if isinstance(pictures, np.ndarray | Tensor):
        is_one, kind = pictures.ndim < 4, _kind(pictures)
        return Pictures([pictures] if is_one else [*pictures], is_one, kind)
    if isinstance(pictures, str | PathLike | Image.Image):
        return Pictures([pictures], True, _kind(pictures))
    items = list(pictures) if isinstance(pictures, Iterable) else [pictures]
    if not items:
        raise UserError("there are no pictures to translate")
    return Pictures(items, False, Kind(_kind(items[0]).convert, list))
