"""Files of torch.save, read without executing anything in them."""

import io
import pickle
from typing import Any

import torch
from torch import Tensor

from stargan_dist import storage
from stargan_dist.errors import UserError, explained, printable

SUFFIXES = (".ckpt", ".pt", ".pth")


def load(url: str) -> dict[str, Any]:
    """Load a dictionary.

    Raises:
        UserError: the file cannot be read, is damaged, holds code or anything but a dictionary.
    """
    try:
        data = storage.read_bytes(url)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{url} is not loaded: it is damaged, or holds objects other than tensors, whose code "
            "would run; use a file of tensors alone"
        ) from error
    except Exception as error:  # torch raises nearly anything on damaged data
        reason = printable(str(error).partition("\n")[0], 200)
        raise UserError(f"{url} is not a file of torch.save, or is damaged: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{url} is not a checkpoint of the authors: it holds no networks by name")
    return content


def without_prefix(tensors: Any) -> dict[str, Tensor]:
    """Return a state dict without the prefix `module.`, if all of its names have it.

    Anything but a state dict is returned as an empty one.
    """
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        return {}
    has_prefix = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if has_prefix else name: t for name, t in tensors.items()}
