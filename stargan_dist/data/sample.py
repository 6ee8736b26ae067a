"""One sample of a shard: two members of a tar, an image and its JSON.

The builder writes plain members, with a header of one block. Anything else is refused: links,
sparse files, compressed streams and extended headers have costs that their size does not show.
"""

import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgspec
from webdataset.tariterators import base_plus_ext

from stargan_dist.data.index import MAX_SAMPLE_BYTES
from stargan_dist.errors import UserError, printable

NOT_WHOLE = "not made of whole tar members: damaged headers, or wrong offsets in the sample table"
PLAIN_FILE = (tarfile.REGTYPE, tarfile.AREGTYPE)
BLOCK = tarfile.BLOCKSIZE

# A header as the builder writes it: tarfile needs ten times as long. It gets all others.
USUAL_HEADER = re.compile(
    rb"(?=(?!/|[!-~]*\.\.)([!-~]{1,99})\0).{100}"  # name
    rb"(?:[0-7]{7}\0){3}0([0-7]{10})\0[0-7]{11}\0"  # mode, owner, group, size < 1 GiB, time
    rb"([0-7]{6})\0 0.{100}ustar\x0000.{64}\0{171}.{12}",  # checksum, a plain file, no prefix
    re.DOTALL,
)
CHECKSUM = slice(148, 156)  # of a header; it counts as spaces in its own sum


class Metadata(msgspec.Struct):
    """The JSON that the builder stores beside an image.

    Attributes:
        domain: name of its domain.
        path: path of the original file, relative to the builder's source.
        label: number of its domain.
        attributes: further fields of its row in a manifest.
    """

    domain: str
    path: str
    label: int | None = None
    attributes: dict[str, Any] = {}


@dataclass(frozen=True)
class Sample:
    """One encoded image, and its metadata. The key is printable."""

    key: str
    image: bytes
    metadata: Metadata


class Member(NamedTuple):
    """A plain file in a tar: its name, and the first byte and size of its contents."""

    name: str
    begin: int
    size: int

    @property
    def end(self) -> int:
        """The first byte after the member, padded to whole blocks."""
        return self.begin + -(-self.size // BLOCK) * BLOCK


def parse_sample(data: bytes) -> Sample:
    """Parse the tar members of a sample.

    Raises:
        UserError: the members are not exactly one image and its JSON, or the JSON is invalid.
    """
    key, image, text = split_sample(data)
    return Sample(printable(key), image, parse_metadata(text))


def split_sample(data: bytes) -> tuple[str, bytes, bytes]:
    """Return the key, the image and the JSON of a sample.

    Raises:
        UserError: the members are not exactly one image and its JSON.
    """
    members = _parse_members(data)
    split = [base_plus_ext(member.name) for member in members]
    keys, are_json = {key for key, _ in split}, [suffix == "json" for _, suffix in split]
    if len(keys) != 1 or sorted(are_json) != [False, True]:
        names = ", ".join(f"{member.name!r:.120}" for member in members)
        raise UserError(f"one image and its JSON are expected, not {names}")
    contents = [data[m.begin : m.begin + m.size] for m in members]
    return keys.pop(), contents[are_json.index(False)], contents[are_json.index(True)]


def _parse_members(data: bytes) -> list[Member]:
    members: list[Member] = []
    offset = 0
    while offset < len(data) and len(members) <= 2:  # a third is one too many
        members.append(parse_header(data[offset : offset + BLOCK], offset))
        offset = members[-1].end
        if offset > len(data):
            raise UserError(NOT_WHOLE)
    return members


def parse_header(block: bytes, offset: int) -> Member:
    """Parse the header of a member at `offset`.

    Raises:
        UserError: it is damaged, or the member is not a plain file inside the tar's folder.
    """
    if member := _parse_usual_header(block, offset):
        return member
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except Exception as error:  # tarfile raises nearly any exception on damaged headers
        raise UserError(f"{NOT_WHOLE} ({error})") from error
    if info.type not in PLAIN_FILE:
        raise UserError(f"{info.name!r} is not a plain file")
    if info.name.startswith("/") or ".." in PurePosixPath(info.name).parts:
        raise UserError(f"{info.name!r} points outside the tar")
    if not 0 <= info.size <= MAX_SAMPLE_BYTES:
        raise UserError(NOT_WHOLE)
    return Member(info.name, offset + BLOCK, info.size)


def _parse_usual_header(block: bytes, offset: int) -> Member | None:
    found = USUAL_HEADER.fullmatch(block)
    if not found:
        return None
    name, size, checksum = found.groups()
    is_whole = sum(block) - sum(block[CHECKSUM]) + sum(b" " * 8) == int(checksum, 8)
    return Member(name.decode(), offset + BLOCK, int(size, 8)) if is_whole else None


def parse_metadata(text: bytes) -> Metadata:
    """Parse the JSON of a sample.

    Raises:
        UserError: it is not JSON, is nested too deep, or lacks a field.
    """
    try:
        # Not msgspec's parser: attributes of earlier builds may be NaN.
        return msgspec.convert(json.loads(text), Metadata)
    except msgspec.ValidationError as error:
        raise UserError(f"the JSON is invalid: {printable(str(error), 300)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"the JSON cannot be parsed ({printable(str(error).partition(';')[0])})"
        ) from error
