"""A cache of tensors that are expensive to compute, keyed by what they were computed from."""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from stargan_dist import storage

logger = logging.getLogger(__name__)


class TensorCache:
    """A folder on any URL with a safetensors and a JSON file per entry.

    The JSON file holds the key and the hash of the tensors. A key is a mapping that describes all
    inputs of the computation.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def _entry_url(self, key: Mapping[str, Any]) -> str:
        text = json.dumps(key, sort_keys=True).encode()
        return storage.join(self.url, hashlib.sha256(text).hexdigest()[:32])

    def load(self, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Return the tensors under a key, or None if they are missing or damaged."""
        url = self._entry_url(key)
        try:
            entry = json.loads(storage.read_bytes(f"{url}.json"))
            data = storage.read_bytes(f"{url}.safetensors")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log_damage(url, str(error))
            return None
        if entry != {**key, "sha256": hashlib.sha256(data).hexdigest()}:
            _log_damage(url, "its hash is wrong")
            return None
        return load(data)

    def save(self, key: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        """Store tensors under a key. If that fails, log a warning and continue."""
        url, data = self._entry_url(key), save(tensors)
        entry = {**key, "sha256": hashlib.sha256(data).hexdigest()}
        try:
            storage.write_bytes(f"{url}.safetensors", data)
            storage.write_bytes(f"{url}.json", json.dumps(entry, indent=1).encode())
        except OSError as error:
            logger.warning(
                "cannot cache statistics of real images at %s (%s): they will be computed again; "
                "choose another folder by evaluation.cache (--cache of stargan_dist.evaluate)",
                self.url,
                error,
            )


def _log_damage(url: str, reason: str) -> None:
    logger.warning("%s.safetensors is computed again: %s", url, reason)
