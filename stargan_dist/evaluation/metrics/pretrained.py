"""Pretrained weights: files that are downloaded once, or named."""

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
from stargan_dist.errors import UserError


class Source(NamedTuple):
    """A file of weights as published. Its name ends with the beginning of its SHA-256."""

    network: str
    url: str
    option: str  # of `stargan_dist.evaluate`

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def hash_prefix(self) -> str:
        return Path(self.name).stem.rpartition("-")[2]

    @property
    def cached(self) -> Path:
        """Where torch keeps it."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name


PAPER_INCEPTION = Source(
    "torchvision Inception-v3",
    "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
    "inception-weights",
)
TF_INCEPTION = Source(
    "TensorFlow Inception-v3",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "inception-weights",
)
ALEXNET = Source(
    "torchvision AlexNet",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "alexnet-weights",
)


@dataclass(frozen=True)
class Weights:
    """Loaded weights, and what they are. `official`: those of the published file."""

    network: str
    file: str
    sha256: str
    official: bool
    state: dict[str, Tensor]

    @property
    def facts(self) -> dict[str, str | bool]:
        """What a result tells of them."""
        return {"network": self.network, "sha256": self.sha256, "official": self.official}


def load_all(wanted: Mapping[Source, str]) -> list[Weights]:
    """Load files of weights: for each source the file or URL named for it, or "" to download it.

    Raises:
        UserError: one line about all that cannot be had, or a file that holds no weights.
    """
    missing = [complaint for source, file in wanted.items() if (complaint := _fetch(source, file))]
    if missing:
        raise UserError("; ".join(missing))
    return [_load(source, file or str(source.cached)) for source, file in wanted.items()]


def _fetch(source: Source, file: str) -> str:
    """Have a file in torch's cache unless another is named. Returns what is wrong, if anything."""
    if file or source.cached.is_file():
        return ""
    try:
        source.cached.parent.mkdir(parents=True, exist_ok=True)
        with _time_limit(storage.current_config().timeout_seconds):
            torch.hub.download_url_to_file(
                source.url, str(source.cached), source.hash_prefix, progress=False
            )
        return ""
    except (OSError, RuntimeError) as error:
        return (
            f"no weights of {source.network}: cannot download {source.url} ({error}); fetch it "
            f"elsewhere and put it at {source.cached}, or name it with --{source.option} FILE "
            f"(in training --evaluation.{source.option.replace('-', '_')} FILE)"
        )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Servers that do not answer are not waited for."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _load(source: Source, file: str) -> Weights:
    try:
        data = storage.read_bytes(file)
    except OSError as error:
        raise UserError(f"cannot read the weights of {source.network}, {file}: {error}") from error
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on foreign bytes
        reason = str(error).partition("\n")[0]
        raise UserError(f"{file} holds no weights that can be loaded safely: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{file} holds no weights that can be loaded safely: it is no state dict")
    sha256 = hashlib.sha256(data).hexdigest()
    official = sha256.startswith(source.hash_prefix)
    return Weights(source.network, Path(file).name, sha256, official, state)
