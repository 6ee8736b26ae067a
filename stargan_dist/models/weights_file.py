"""safetensors files with a hash of their contents in the header."""

import hashlib
import json

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stargan_dist.errors import UserError


def to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Serialise tensors. The header's metadata has the SHA-256 of everything behind the header."""
    contents = {name: tensor.contiguous() for name, tensor in tensors.items()}
    _, body = _split(save(contents))
    return save(contents, {"format": "pt", "sha256": hashlib.sha256(body).hexdigest()})


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
    expected = header.get("__metadata__", {}).get("sha256")
    if expected not in (None, hashlib.sha256(body).hexdigest()):
        raise UserError(
            f"{origin} is damaged: its hash differs from that in its header; fetch it again"
        )
    return tensors


def _split(data: bytes) -> tuple[dict[str, dict[str, str]], memoryview]:
    """Return the header and everything behind it."""
    end = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, dict[str, str]] = json.loads(data[8:end])
    return header, memoryview(data)[end:]
