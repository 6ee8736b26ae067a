"""Weights of landmark networks, which make the masks of the high-pass option.

They are read from a safetensors file of this project, from the `fan` of a checkpoint of StarGAN
v2's authors (`NNNNNN_nets_ema.ckpt`), or from the `state_dict` of the file that they start from
(`wing.ckpt`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from stargan_dist import storage
from stargan_dist.config import ModelConfig
from stargan_dist.errors import UserError, explained
from stargan_dist.models import torch_file, weights_file
from stargan_dist.models.tensors import check_shapes, fingerprint
from stargan_dist.nets.fan import FAN
from stargan_dist.nets.masks import WFLW, LandmarkMasks, Part

FILE = "landmarks.safetensors"  # in a run or a model folder
METADATA = "landmarks"  # key in the header of such a file
MAX_INPUT_SIZE, MAX_POWER = 1024, 16


class Description(msgspec.Struct, frozen=True):
    """What the weights do not show.

    Attributes:
        input_size: pixels that images are resized to.
        parts: of the masks.
    """

    input_size: int = 256
    parts: tuple[Part, ...] = WFLW


PUBLISHED = Description()


@dataclass(frozen=True)
class SavedLandmarks:
    """A landmark network between file and module.

    Attributes:
        origin: where it was read from.
        tensors: state dict of a `FAN`.
    """

    origin: str
    tensors: dict[str, Tensor]
    description: Description = PUBLISHED

    @property
    def is_published(self) -> bool:
        """It has the form of the published network, with its table of parts."""
        with torch.device("meta"):
            sizes = {name: tensor.shape for name, tensor in FAN().state_dict().items()}
        own = {name: tensor.shape for name, tensor in self.tensors.items()}
        return self.description == PUBLISHED and own == sizes

    def build(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> FAN:
        """Build the network in evaluation mode."""
        network = empty_network(self.tensors, self.description.input_size)
        network.load_state_dict(self.tensors, assign=True)
        return network.to(device, dtype).eval().requires_grad_(False)

    def masks(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> LandmarkMasks:
        """Return what makes masks, computing in a dtype."""
        return LandmarkMasks(self.build(device, dtype), self.description.parts)

    def fingerprint(self) -> str:
        """Return a hash of the weights and of the table of parts."""
        digest = hashlib.sha256(msgspec.json.encode(self.description))
        digest.update(fingerprint(self.tensors).encode())
        return digest.hexdigest()

    def check(self) -> "SavedLandmarks":
        """Check tensors and description against each other; return the network.

        Raises:
            UserError: they do not fit.
        """
        size, origin = self.description.input_size, self.origin
        if not (64 <= size <= MAX_INPUT_SIZE and size % 64 == 0):
            raise UserError(
                f"{origin}: input_size must be a multiple of 64 up to {MAX_INPUT_SIZE}, not {size}"
            )
        expected = empty_network(self.tensors, size, origin).state_dict()
        check_shapes(origin, self.tensors, {n: tensor.shape for n, tensor in expected.items()})
        check_parts(self.description.parts, len(self.tensors["l0.bias"]), origin)
        return self


def check_parts(parts: tuple[Part, ...], num_maps: int, origin: str) -> None:
    """Check a table of parts.

    Raises:
        UserError: it names a landmark that is not there, or a power below 1.
    """
    for part in parts:
        if not part.landmarks or not all(0 <= i < num_maps for i in part.landmarks):
            raise UserError(
                f"{origin}: a part of the masks has the landmarks {[*part.landmarks]}, which are "
                f"not among 0 to {num_maps - 1}"
            )
        if not all(1 <= move.power <= MAX_POWER for move in part.moves):
            raise UserError(f"{origin}: powers of a part are 1 to {MAX_POWER}")


def empty_network(tensors: Mapping[str, Tensor], input_size: int, origin: str = "") -> FAN:
    """Return a network of the sizes that the tensors have, without memory.

    Raises:
        UserError: they do not show the sizes.
    """
    first, last = tensors.get("conv1.conv.weight"), tensors.get("l0.weight")
    if first is None or last is None or not (first.ndim == last.ndim == 4) or len(first) % 4:
        raise UserError(
            f"{origin} is not a landmark network: it lacks conv1.conv.weight, l0.weight"
        )
    with torch.device("meta"):
        return FAN(len(last), 4 * len(first), input_size)


# Files.


def read(url: str) -> SavedLandmarks:
    """Read a landmark network from a file or URL.

    Raises:
        UserError: it cannot be read, is damaged, holds code or another network.
    """
    if url.endswith(torch_file.SUFFIXES):
        return _of_torch_file(url, torch_file.load(url))
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error
    return from_bytes(data, url)


def _of_torch_file(url: str, content: Mapping[str, Any]) -> SavedLandmarks:
    """Return the `fan` of a checkpoint of the authors, or the network of `wing.ckpt`."""
    if "fan" in content:
        return of_authors(url, content["fan"])
    # The origin's file may hold further stacks, which are not used.
    tensors = torch_file.without_prefix(content.get("state_dict"))
    with torch.device("meta"):
        known = FAN().state_dict().keys()
    return of_authors(url, {name: t for name, t in tensors.items() if name in known})


def of_authors(url: str, tensors: Any) -> SavedLandmarks:
    """Return the published network from its state dict. Raises UserError if it is another."""
    return SavedLandmarks(url, torch_file.without_prefix(tensors)).check()


def from_bytes(data: bytes, origin: str) -> SavedLandmarks:
    """Parse a file of `to_bytes`, or a safetensors file of the published network.

    Raises:
        UserError: it is damaged or another network.
    """
    tensors, metadata = weights_file.from_bytes(data, origin), weights_file.metadata(data)
    text = metadata.get(METADATA, "{}").encode()
    return SavedLandmarks(origin, tensors, storage.decode_json(text, Description, origin)).check()


def to_bytes(landmarks: SavedLandmarks) -> bytes:
    """Serialise a network as a safetensors file with its description in the header."""
    text = msgspec.json.encode(landmarks.description).decode()
    return weights_file.to_bytes(landmarks.tensors, {METADATA: text})


def write(url: str, landmarks: SavedLandmarks) -> None:
    """Write a network to a file or URL. Raises UserError if it cannot be written."""
    try:
        storage.write_bytes(url, to_bytes(landmarks))
    except OSError as error:
        raise explained(f"cannot write {url}: {error}", error) from error


def find(folder: str) -> SavedLandmarks | None:
    """Read the network that a run or a model folder has, if any. Raises UserError as `read`."""
    url = storage.join(folder, FILE)
    return read(url) if _exists(url) else None


def _exists(url: str) -> bool:
    try:
        return storage.exists(url)
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error


def keep_copy(landmarks: SavedLandmarks, folder: str) -> None:
    """Write a network into a folder that does not have one. Raises UserError if it cannot."""
    url = storage.join(folder, FILE)
    if not _exists(url):
        write(url, landmarks)


def of_run(config: ModelConfig, run: str) -> SavedLandmarks | None:
    """Return the network that a training uses: the named one, or the copy in its run.

    Raises:
        UserError: the high-pass option is on and there is none, or they differ, or see `read`.
    """
    if not config.w_hpf:
        return None
    named, copy = read(config.landmarks) if config.landmarks else None, find(run)
    if named and copy and named.fingerprint() != copy.fingerprint():
        raise UserError(
            f"model.landmarks: {run} was trained with the masks of another network than "
            f"{config.landmarks}: leave it out to resume the run, or name another --run"
        )
    found = named or copy
    if not found:
        raise UserError(
            "model.landmarks: the high-pass option (model.w_hpf) needs a landmark network: name "
            "its file (docs/faces.md says where to get one), or train without: --model.w_hpf 0"
        )
    return found
