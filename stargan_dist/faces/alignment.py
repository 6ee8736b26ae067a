"""Alignment of a photograph to the frame of a training set, by landmarks of the face.

That of StarGAN v2 (arXiv 1912.01865, its public implementation): a similarity takes the landmarks
to reference landmarks, and what is outside the photograph is its mirror image, blurred outwards.

Points are x, y in pixels; the centre of the first pixel is at 0.5. A transform, float64 (2, 3),
takes points of a photograph to points of a square frame.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stargan_dist.errors import UserError

Array = NDArray[Any]
Points = NDArray[np.float64]  # (L, 2)
Transform = NDArray[np.float64]  # (2, 3)

REFERENCE_SIZE = 256  # pixels of the frame that reference landmarks are given in
# A photograph is first resized, without aliasing, if a pixel of it is a pixel of the frame times
# more or less than this. In between, only the warp interpolates.
MAX_RATIO = 4 / 3
MAX_ENLARGEMENT = 32
REACH = 8  # pixels beyond the frame that its interpolation may read


@dataclass(frozen=True)
class Face:
    """Numbers of the landmarks that an alignment goes by. Their means are the points.

    Attributes:
        left_eye: on the left of the picture.
        right_eye: on the right of the picture.
        mouth: or any point below the eyes.
        scale: those whose distances from the mean of all landmarks give the scale; they should be
            far from it. Empty: those of the eyes.
    """

    left_eye: tuple[int, ...]
    right_eye: tuple[int, ...]
    mouth: tuple[int, ...]
    scale: tuple[int, ...] = ()

    @property
    def scaling(self) -> list[int]:
        """The landmarks that give the scale."""
        return [*(self.scale or self.left_eye + self.right_eye)]


# The 98 landmarks of WFLW (arXiv 1805.10483): contour and pupil of each eye, corners of the mouth.
WFLW = Face((*range(60, 68), 96), (*range(68, 76), 97), (76, 82), scale=(96, 97, 76, 82))
WFLW_LANDMARKS = 98


# Transforms.


def similarity(points: Points, reference: Points, face: Face) -> Transform:
    """Return the similarity that takes the landmarks of a face to those of a reference.

    It takes the mean of all landmarks to the mean, the x axis of the face to the x axis. The scale
    is the mean, over `face.scaling`, of the ratios of the distances from the mean.

    Raises:
        UserError: landmarks coincide.
    """
    z, target = _complex(points), _complex(reference)
    centre, target_centre = z.mean(), target.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(target - target_centre) / np.abs(z - centre)
        rotation = _x_axis(target, face) / _x_axis(z, face)
        linear = ratios[face.scaling].mean() * rotation / np.abs(rotation)
    shift = target_centre - linear * centre
    transform = np.array(
        [[linear.real, -linear.imag, shift.real], [linear.imag, linear.real, shift.imag]]
    )
    if not (np.isfinite(transform).all() and linear):
        raise UserError("landmarks coincide")
    return transform


def _complex(points: Points) -> NDArray[np.complex128]:
    return points[:, 0] + 1j * points[:, 1]


def _x_axis(z: NDArray[np.complex128], face: Face) -> np.complex128:
    """Return the direction to the right of a face: of its eyes, and across eyes and mouth."""
    left, right, mouth = (z[[*part]].mean() for part in (face.left_eye, face.right_eye, face.mouth))
    axis: np.complex128 = right - left - 1j * (mouth - (left + right) / 2)
    return axis


def apply(transform: Transform, points: Points) -> Points:
    """Transform points."""
    return points @ transform[:, :2].T + transform[:, 2]


def invert(transform: Transform) -> Transform:
    """Return the inverse: from the frame to the photograph."""
    linear = np.linalg.inv(transform[:, :2])
    return np.column_stack([linear, -linear @ transform[:, 2]])


def whole_picture(width: int, height: int, size: int) -> Transform:
    """Return the transform that shows the whole picture in the middle of a frame."""
    scale = size / max(width, height)
    shift = [(size - scale * width) / 2, (size - scale * height) / 2]
    return np.column_stack([scale * np.eye(2), shift])


def _scale(transform: Transform) -> float:
    return float(np.sqrt(np.linalg.det(transform[:, :2])))


# Pixels.


def view(image: Image.Image, transform: Transform, size: int) -> Array:
    """Return what a landmark network sees, uint8 (size, size, 3). The border is repeated.

    Raises:
        UserError: as `align`.
    """
    cv2 = opencv()
    pixels, transform = _resized(image, transform, size)
    return _warp(pixels, transform, size, cv2.INTER_LINEAR)


def align(image: Image.Image, transform: Transform, size: int) -> Image.Image:
    """Return the frame of a photograph.

    Args:
        image: RGB, upright.
        transform: to the frame.
        size: width and height of the frame, in pixels.

    Raises:
        UserError: the frame shows nothing of the photograph, or enlarges it by more than
            MAX_ENLARGEMENT; OpenCV is missing.
    """
    cv2 = opencv()
    pixels, transform = _resized(image, transform, size)
    margin = size // 2
    canvas = pad(pixels, margin, max(1, size // 100))
    frame = _warp(canvas, transform @ _moved(-margin), size, cv2.INTER_LANCZOS4)
    return Image.fromarray(np.rint(frame).clip(0, 255).astype(np.uint8))


def _resized(image: Image.Image, transform: Transform, size: int) -> tuple[Array, Transform]:
    """Return the part of a photograph that a frame shows, uint8 (h, w, 3), and its transform.

    It is resized to the scale of the frame unless its own is near.
    """
    scale = _scale(transform)
    left, top, right, bottom = box = _visible_box(image, transform, size)
    factor = 1.0 if 1 / MAX_RATIO <= scale <= MAX_RATIO else scale
    width, height = (max(1, round(n * factor)) for n in (right - left, bottom - top))
    part = image.crop(box).resize((width, height), Image.Resampling.LANCZOS)
    x_step, y_step = (right - left) / width, (bottom - top) / height
    to_photograph = np.array([[x_step, 0, left], [0, y_step, top], [0, 0, 1]])
    return np.asarray(part), transform @ to_photograph


def _visible_box(image: Image.Image, transform: Transform, size: int) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the part that a frame shows, and a little more."""
    scale = _scale(transform)
    corners = apply(
        invert(transform), np.array([[0, 0], [size, 0], [0, size], [size, size]], float)
    )
    limits = np.array(image.size)
    reach = REACH * max(1, 1 / scale)
    first = np.floor(corners.min(0) - reach).clip(0, limits).astype(int)
    last = np.ceil(corners.max(0) + reach).clip(0, limits).astype(int)
    if scale > MAX_ENLARGEMENT or not (first < last).all():
        raise UserError("the landmarks are not those of a face in the picture")
    return first[0], first[1], last[0], last[1]


def _moved(by: float) -> NDArray[np.float64]:
    """Return the matrix (3, 3) that moves points along both axes."""
    return np.array([[1, 0, by], [0, 1, by], [0, 0, 1]], float)


def _warp(pixels: Array, transform: Transform, size: int, interpolation: int) -> Array:
    cv2 = opencv()
    # OpenCV's coordinates are numbers of pixels: the centre of the first one is 0.
    numbers = np.linalg.inv(_moved(0.5))[:2] @ np.vstack([transform @ _moved(0.5), [0, 0, 1]])
    frame: Array = cv2.warpAffine(
        pixels, numbers, (size, size), flags=interpolation, borderMode=cv2.BORDER_REPLICATE
    )
    return frame


def pad(pixels: Array, margin: int, blur: float) -> Array:
    """Mirror a picture around it, blurred outwards.

    Args:
        pixels: uint8 (h, w, 3).
        margin: pixels on each side.
        blur: standard deviation of the blur at half the resolution, in pixels.

    Returns:
        float32 (h + 2 margin, w + 2 margin, 3): `border_weights` times the mirrored picture, and
        the blurred one for the rest.
    """
    cv2 = opencv()
    mirrored = cv2.copyMakeBorder(pixels.astype(np.float32), *[margin] * 4, cv2.BORDER_REFLECT)
    height, width = mirrored.shape[:2]
    half = cv2.resize(mirrored, ((width + 1) // 2, (height + 1) // 2))
    blurred = cv2.resize(cv2.GaussianBlur(half, (0, 0), blur), (width, height))
    weights = border_weights(height, width, margin).astype(np.float32)[:, :, None]
    padded: Array = weights * mirrored + (1 - weights) * blurred
    return padded


def border_weights(height: int, width: int, margin: int) -> NDArray[np.float64]:
    """Return weights (height, width): 0 at the border, 1 from `margin` pixels inside.

    In between it is the fourth power of the distance.
    """
    rows, columns = (
        (np.minimum(np.arange(n), np.arange(n)[::-1]) / margin).clip(0, 1) for n in (height, width)
    )
    weights: NDArray[np.float64] = np.minimum(rows[:, None], columns) ** 4
    return weights


def opencv() -> Any:
    """Return OpenCV's module. Raises UserError if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise UserError("alignment needs a package: pip install 'stargan_dist[faces]'") from error
    return cv2
