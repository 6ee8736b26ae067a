"""Reference landmarks: those of the mean face of a training set, in a frame of 256 px."""

import io
from typing import Any

import msgspec
import numpy as np

from stargan_dist import storage
from stargan_dist.errors import UserError, explained, printable
from stargan_dist.faces.alignment import WFLW, WFLW_LANDMARKS, Face, Points, similarity

NPZ_START = b"PK"
MAX_BYTES = 2**24  # of a file
MAX_LANDMARKS, MAX_COORDINATE = 4096, 1e4


class _Mean(msgspec.Struct):
    mean: list[tuple[float, float]]


def read_reference(url: str) -> Points:
    """Read reference landmarks (L, 2), x and y in pixels of a frame of 256 px.

    Args:
        url: npz file with an array `mean`, or JSON file: a list of [x, y], alone or as `mean`.

    Raises:
        UserError: the file cannot be read or is something else.
    """
    try:
        data = storage.read_bytes(url, MAX_BYTES)
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error
    points = _of_npz(data, url) if data.startswith(NPZ_START) else _of_json(data, url)
    if points.ndim != 2 or points.shape[1] != 2 or not 2 <= len(points) <= MAX_LANDMARKS:
        raise UserError(f"{url}: reference landmarks have the shape (L, 2), not {points.shape}")
    if not (np.abs(points) <= MAX_COORDINATE).all():
        raise UserError(f"{url}: reference landmarks are pixels of a frame of 256 px")
    return points


def _of_npz(data: bytes, url: str) -> Points:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return np.asarray(arrays["mean"], np.float64)
    except Exception as error:  # numpy and zipfile raise nearly anything on damaged data
        reason = printable(" ".join(str(error).split()), 200)
        raise UserError(f"{url} is not an npz file with an array `mean`: {reason}") from error


def _of_json(data: bytes, url: str) -> Points:
    remedy = "reference landmarks are a list of [x, y], or an npz file with an array `mean`"
    kind: Any = _Mean | list[tuple[float, float]]
    content: Any = storage.decode_json(data, kind, url, remedy)
    points = content.mean if isinstance(content, _Mean) else content
    return np.array(points, np.float64).reshape(-1, 2)


def read_face(text: str, reference: Points) -> Face:
    """Return the landmarks that an alignment goes by.

    Args:
        text: JSON object with the fields of `Face`. Empty: the 98 landmarks of WFLW.

    Raises:
        UserError: they are not landmarks of the reference, or it has other ones than WFLW.
    """
    number = len(reference)
    if not text and number != WFLW_LANDMARKS:
        raise UserError(
            f"the reference has {number} landmarks, not the {WFLW_LANDMARKS} of WFLW: name those "
            'of eyes and mouth: --face \'{"left_eye": [0], "right_eye": [1], "mouth": [2]}\''
        )
    face = storage.decode_json(text.encode(), Face, "--face") if text else WFLW
    groups = (face.left_eye, face.right_eye, face.mouth)
    if not all(groups) or not all(
        0 <= i < number for group in (*groups, face.scale) for i in group
    ):
        raise UserError(f"--face: each part has numbers of landmarks, from 0 to {number - 1}")
    try:
        similarity(reference, reference, face)
    except UserError as error:
        raise UserError(f"--face, --reference: {error} in the reference") from error
    return face
