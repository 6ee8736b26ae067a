"""JSON files that this program reads: parsed into types, and with a hash of themselves.

Nothing untyped gets further. Files that decide something are sealed: their field `sha256` is the
hash of all others, so that a flipped bit in a name or a number is noticed.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from stargan_dist.errors import UserError, printable

T = TypeVar("T")


def decode_json(data: bytes, kind: type[T], origin: str, remedy: str = "") -> T:
    """Parse JSON into a type: a dataclass, a msgspec Struct, or a type such as dict[str, int].

    Args:
        data: the JSON text, in UTF-8.
        kind: the type. Bounds and patterns are given by `Annotated[…, msgspec.Meta(…)]`.
        origin: where the data comes from, for error messages.
        remedy: what the user can do about invalid data.

    Raises:
        UserError: the data is not JSON, is nested too deep, or is not of that type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        reason = printable(str(error), 300)  # it may name a field of the data
        raise UserError(f"{origin} is invalid: {reason}{remedy and f'; {remedy}'}") from error


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a JSON object with a hash of them, `sha256`, in addition."""
    return {**fields, "sha256": _hash(fields)}


def check_seal(data: bytes, origin: str, remedy: str) -> None:
    """Check the hash in a JSON object that `decode_json` has accepted.

    Raises:
        UserError: it does not match the other fields.
    """
    fields = json.loads(data)
    if fields.pop("sha256", None) != _hash(fields):
        raise UserError(f"{origin} is damaged: its hash is wrong; {remedy}")


def _hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
