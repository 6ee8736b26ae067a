"""Tensors that are dear to compute, kept under a name that says what they were computed from."""

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from stargan_dist import storage


class TensorCache:
    """A folder, on any URL, of safetensors and JSON files: the JSON tells from what the tensors
    were computed, and their hash."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _place(self, facts: Mapping[str, Any]) -> str:
        told = json.dumps(facts, sort_keys=True).encode()
        return storage.join(self.url, hashlib.sha256(told).hexdigest()[:32])

    def load(self, facts: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The tensors computed from these facts; None if there are none, or damaged ones."""
        place = self._place(facts)
        try:
            row = json.loads(storage.read_bytes(f"{place}.json"))
            data = storage.read_bytes(f"{place}.safetensors")
            sound = row == {**facts, "sha256": hashlib.sha256(data).hexdigest()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return _passed_over(place, str(error))
        if not sound:
            return _passed_over(place, "its hash is wrong")
        return load(data)

    def save(self, facts: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        """Keep tensors. Where that cannot be, say so and go on."""
        place, data = self._place(facts), save(tensors)
        row = {**facts, "sha256": hashlib.sha256(data).hexdigest()}
        try:
            storage.write_bytes(f"{place}.safetensors", data)
            storage.write_bytes(f"{place}.json", json.dumps(row, indent=1).encode())
        except OSError as error:
            print(
                f"cannot keep statistics of real images at {self.url} ({error}), they will be "
                "computed again: name a folder as evaluation.cache",
                file=sys.stderr,
                flush=True,
            )


def _passed_over(place: str, reason: str) -> Any:
    print(f"{place}.safetensors is computed again: {reason}", file=sys.stderr, flush=True)
    return None
