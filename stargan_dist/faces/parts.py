"""Tables of the parts of masks, as JSON files.

    [{"landmarks": [0, 1], "moves": [{"rows": 2, "power": 3}]}, {"landmarks": [3], "inner": false}]

The fields are those of `stargan_dist.nets.masks.Part`.
"""

from typing import Annotated

import msgspec

from stargan_dist import storage
from stargan_dist.errors import UserError, explained
from stargan_dist.models.landmarks import check_parts
from stargan_dist.nets.masks import WFLW, Move, Part

REMEDY = 'it must be like [{"landmarks": [0, 1]}, {"landmarks": [2], "inner": false}]'


class _MoveFields(msgspec.Struct, forbid_unknown_fields=True):
    rows: int = 0
    power: int = 1


class _PartFields(msgspec.Struct, forbid_unknown_fields=True):
    landmarks: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)]
    moves: Annotated[tuple[_MoveFields, ...], msgspec.Meta(min_length=1)] = (_MoveFields(),)
    inner: bool = True

    def part(self) -> Part:
        """Return the part."""
        moves = tuple(Move(move.rows, move.power) for move in self.moves)
        return Part(self.landmarks, moves, self.inner)


def read(url: str, num_landmarks: int) -> tuple[Part, ...]:
    """Read a table for a network of some landmarks from a file or URL.

    Raises:
        UserError: it cannot be read, is invalid, or names a landmark that is not there.
    """
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error
    kind = Annotated[list[_PartFields], msgspec.Meta(min_length=1)]
    fields: list[_PartFields] = storage.decode_json(data, kind, url, REMEDY)
    parts = tuple(part.part() for part in fields)
    check_parts(parts, num_landmarks, url)
    return parts


def choose(url: str | None, num_landmarks: int) -> tuple[Part, ...]:
    """Return the table in a file, or without one that of WFLW for as many landmarks.

    Raises:
        UserError: as `read`; or there is no table for another number of landmarks.
    """
    if url:
        return read(url, num_landmarks)
    if num_landmarks not in (98, 99):
        raise UserError(
            f"--parts: the table of the masks is known for the 98 landmarks of WFLW, not for "
            f"{num_landmarks}: name a file of your own (docs/faces.md)"
        )
    return WFLW
