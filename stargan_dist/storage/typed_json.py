"""JSON files that this program reads, parsed into a type: nothing untyped gets further."""

from typing import TypeVar

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
