"""Landmarks of images as a manifest: JSON lines, one for each image.

    {"file": "cat/000000.png", "points": [[23.5, 20.1], [41.0, 21.7]], "size": [64, 64]}

`file` is the image's path as its shards know it. `points` are x, y in pixels of the upright image
that the shards were built from; (0, 0) is its top left corner. `size`, its width and height, is
needed only if the shards were built with a crop or a reduced size.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from stargan_dist import storage
from stargan_dist.errors import UserError, explained, printable

REMEDY = 'a line is like {"file": "cat/0.png", "points": [[12.5, 30], [40, 31]]}'

Coordinate = Annotated[float, msgspec.Meta(ge=0)]
Pixels = Annotated[int, msgspec.Meta(ge=1)]
Size = tuple[Pixels, Pixels]  # width, height
Point = tuple[Coordinate, Coordinate]


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    file: str
    points: Annotated[list[Point], msgspec.Meta(min_length=1)]
    size: Size | None = None


@dataclass(frozen=True)
class Landmarks:
    """The landmarks of one image.

    Attributes:
        points: float32 (L, 2), x, y in pixels of the original image.
        size: width and height of that image; None: as in the shards.
    """

    points: np.ndarray
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Manifest:
    """The landmarks of many images.

    Attributes:
        origin: where it was read from.
        rows: by the paths of the images.
        num_landmarks: of each image.
        fingerprint: hash of the file.
    """

    origin: str
    rows: dict[str, Landmarks]
    num_landmarks: int
    fingerprint: str

    def fractions(
        self, path: str, stored: tuple[int, int], encoding: Mapping[str, Any] | None
    ) -> np.ndarray:
        """Return the landmarks (L, 2) of an image as fractions of its stored width and height.

        Those that a crop has cut off are below 0 or above 1.

        Args:
            path: of the image.
            stored: its width and height in the shards.
            encoding: how the shards' images were re-encoded (`Index.encoding`).

        Raises:
            UserError: it has no landmarks, they lie outside, or the original's size is not known.
        """
        row = self.rows.get(path)
        if row is None:
            raise UserError(
                f"{self.origin} has no landmarks of {printable(path, 200)}: add a line for it, or "
                "build the shards without the image"
            )
        crop, size = (int((encoding or {}).get(name, 0)) for name in ("crop", "size"))
        original = self._original_size(path, row, stored, bool(crop or size))
        if (row.points > original).any():
            raise UserError(
                f"{self.origin}: landmarks of {printable(path, 200)} lie outside the image, which "
                f"has {original[0]} × {original[1]} pixels: correct or remove the line"
            )
        side = min(crop, *original)
        shape = np.array([side, side] if crop else original)
        return (row.points - (np.array(original) - shape) // 2) / shape

    def _original_size(
        self, path: str, row: Landmarks, stored: tuple[int, int], reencoded: bool
    ) -> tuple[int, int]:
        if reencoded and row.size is None:
            raise UserError(
                f"{self.origin}: the shards have cropped or reduced images, so a line needs the "
                f'original\'s "size": [width, height]; {printable(path, 200)} has none'
            )
        if not reencoded and row.size and row.size != stored:
            raise UserError(
                f"{self.origin}: the size of {printable(path, 200)} is {stored[0]} × {stored[1]} "
                f"in the shards, not {row.size[0]} × {row.size[1]}: correct the line"
            )
        return row.size or stored


def read(url: str) -> Manifest:
    """Read a manifest from a file or URL.

    Raises:
        UserError: it cannot be read, is empty, has an invalid line, names an image twice, or its
            lines have different numbers of landmarks.
    """
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error
    rows: dict[str, Landmarks] = {}
    count = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            row = _parse(line, f"{url}, line {number},")
            count = count or len(row.points)
            _check(row, rows, count, f"{url}, line {number}")
            rows[row.file] = Landmarks(np.array(row.points, np.float32), row.size)
    if not rows:
        raise UserError(f"{url} is empty: {REMEDY}")
    return Manifest(url, rows, count, hashlib.sha256(data).hexdigest())


def _parse(line: bytes, origin: str) -> _Row:
    if b"NaN" in line or b"Infinity" in line:
        raise UserError(f"{origin} has a coordinate that is not a number: correct or remove it")
    return storage.decode_json(line, _Row, origin, REMEDY)


def _check(row: _Row, rows: Mapping[str, Landmarks], count: int, origin: str) -> None:
    """Check a line against those before it. Raises UserError."""
    if row.file in rows:
        raise UserError(f"{origin}: {printable(row.file, 200)} has landmarks in an earlier line")
    if len(row.points) != count:
        raise UserError(
            f"{origin}: {len(row.points)} landmarks, but {count} in the lines before: each image "
            "needs the same landmarks in the same order"
        )
