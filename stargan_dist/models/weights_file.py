"""safetensors files with a hash of their contents in the header."""

import hashlib
import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stargan_dist.errors import UserError

ALIGNMENT = 8  # of the data behind the header, in bytes


def to_bytes(tensors: dict[str, Tensor], further: dict[str, str] | None = None) -> bytes:
    """Serialise tensors. The header's metadata has the SHA-256 of everything behind the header.

    Args:
        further: metadata by key. The hash covers it too.
    """
    header, body = _split(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    metadata = {"format": "pt", **(further or {}), "sha256": _hash(body, further or {})}
    # Not by safetensors, which writes metadata in a random order.
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return b"".join((len(text).to_bytes(8, "little"), text, body))


def from_bytes(data: bytes, origin: str) -> dict[str, Tensor]:
    """Parse a safetensors file. A hash in its header is verified; other programs write none.

    Raises:
        UserError: it is damaged.
    """
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UserError(f"{origin} is damaged: {error}; fetch it again") from error
    header, body = _split(data)
    found = dict(header.get("__metadata__", {}))
    expected = found.pop("sha256", None)
    found.pop("format", None)
    if expected not in (None, _hash(body, found)):
        raise UserError(
            f"{origin} is damaged: its hash differs from that in its header; fetch it again"
        )
    return tensors


def metadata(data: bytes) -> dict[str, str]:
    """Return the metadata in the header of a file that `from_bytes` has accepted."""
    found: dict[str, str] = _split(data)[0].get("__metadata__", {})
    return found


def _hash(body: memoryview, further: dict[str, str]) -> str:
    digest = hashlib.sha256(body)
    digest.update("".join(f"{k}={v}" for k, v in sorted(further.items())).encode())
    return digest.hexdigest()


def _split(data: bytes) -> tuple[dict[str, dict[str, Any]], memoryview]:
    """Return the header and everything behind it."""
    end = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, dict[str, Any]] = json.loads(data[8:end])
    return header, memoryview(data)[end:]
