"""Pretrained weights: downloaded once into torch's cache, or loaded from a given file."""

import hashlib
import io
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stargan_dist import storage
from stargan_dist.errors import UserError, explained


class WeightsFile(NamedTuple):
    """A published file of weights. Its name ends with the first digits of its SHA-256.

    Attributes:
        network: the network's name in messages and results.
        url: where the file is published.
        option: the option of `stargan_dist.evaluate` that names a local copy, without dashes.
    """

    network: str
    url: str
    option: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]

    @property
    def hash_prefix(self) -> str:
        """The first digits of the file's SHA-256."""
        return Path(self.name).stem.rpartition("-")[2]

    @property
    def cache_path(self) -> Path:
        """The path of the file in torch's cache."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name


PAPER_INCEPTION = WeightsFile(
    "torchvision Inception-v3",
    "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
    "inception-weights",
)
TF_INCEPTION = WeightsFile(
    "TensorFlow Inception-v3",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "inception-weights",
)
ALEXNET = WeightsFile(
    "torchvision AlexNet",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "alexnet-weights",
)


@dataclass(frozen=True)
class Weights:
    """Loaded weights of a network.

    Attributes:
        network: the network's name.
        file: the name of the file.
        sha256: the hash of the file.
        official: the file is the published one.
        state: the state dict.
    """

    network: str
    file: str
    sha256: str
    official: bool
    state: dict[str, Tensor]

    @property
    def description(self) -> dict[str, str | bool]:
        """The description of the weights in a result file."""
        return {"network": self.network, "sha256": self.sha256, "official": self.official}


def load_all(files: Mapping[WeightsFile, str]) -> list[Weights]:
    """Load several files of weights.

    Args:
        files: for each published file the path or URL of a copy, or "" to download it.

    Raises:
        UserError: one line that names all files that are not available, or a file that holds no
            weights.
    """
    errors = [error for file, copy in files.items() if (error := _ensure_cached(file, copy))]
    if errors:
        raise UserError("; ".join(errors))
    return [_load(file, copy or str(file.cache_path)) for file, copy in files.items()]


def _ensure_cached(file: WeightsFile, copy: str) -> str:
    """Download a file into torch's cache unless it is there or a copy is given.

    Returns:
        An error message, empty on success.
    """
    if copy or file.cache_path.is_file():
        return ""
    try:
        file.cache_path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(storage.current_config().timeout_seconds):
            torch.hub.download_url_to_file(
                file.url, str(file.cache_path), file.hash_prefix, progress=False
            )
        return ""
    except (OSError, RuntimeError) as error:
        return (
            f"no weights of {file.network}: cannot download {file.url} ({error}); download it "
            f"elsewhere and copy it to {file.cache_path}, or name it with --{file.option} FILE "
            f"(in training --evaluation.{file.option.replace('-', '_')} FILE)"
        )


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set a time limit for servers that do not answer."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)


def _load(file: WeightsFile, url: str) -> Weights:
    try:
        data = storage.read_bytes(url)
    except OSError as error:
        message = f"cannot read the weights of {file.network}, {url}: {error}"
        raise explained(message, error) from error
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises almost any exception on foreign bytes
        reason = str(error).partition("\n")[0]
        raise UserError(f"{url} holds no weights that can be loaded safely: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        reason = "it is not a state dict"
        raise UserError(f"{url} holds no weights that can be loaded safely: {reason}")
    sha256 = hashlib.sha256(data).hexdigest()
    official = sha256.startswith(file.hash_prefix)
    return Weights(file.network, Path(url).name, sha256, official, state)
