"""Checkpoints of a fit: one safetensors file, from which a killed training resumes."""

import msgspec
from torch import Tensor

from stargan_dist import storage
from stargan_dist.errors import UserError, explained
from stargan_dist.faces.fitting import Fit, Settings
from stargan_dist.models import weights_file
from stargan_dist.models.tensors import check_shapes

METADATA = "fit"  # key in the header
NETWORK, ADAM = "network.", "adam."  # prefixes of tensors: network.NAME, adam.NUMBER.KIND


class Progress(msgspec.Struct, frozen=True):
    """The header of a checkpoint.

    Attributes:
        settings: of the fit.
        data: fingerprint of shards and landmarks.
        step: number of finished iterations.
    """

    settings: Settings
    data: str
    step: int


def save(url: str, fit: Fit) -> None:
    """Write a checkpoint, complete or not at all. Raises UserError if it cannot be written."""
    progress = msgspec.json.encode(Progress(fit.settings, fit.data, fit.step)).decode()
    network = {NETWORK + name: tensor for name, tensor in fit.network.state_dict().items()}
    states = fit.optimizer.state_dict()["state"]
    adam = {f"{ADAM}{i}.{kind}": t for i, state in states.items() for kind, t in state.items()}
    tensors = {name: tensor.cpu() for name, tensor in (network | adam).items()}
    try:
        storage.write_bytes(url, weights_file.to_bytes(tensors, {METADATA: progress}))
    except OSError as error:
        raise explained(f"cannot write {url}: {error}", error) from error


def resume(url: str, fit: Fit) -> None:
    """Load a checkpoint into a new fit, if there is one.

    Raises:
        UserError: it cannot be read, is damaged, or belongs to other settings or data.
    """
    try:
        data = storage.read_bytes(url) if storage.exists(url) else None
    except OSError as error:
        raise explained(f"cannot read {url}: {error}", error) from error
    if data is None:
        return
    tensors = weights_file.from_bytes(data, url)
    progress = weights_file.metadata(data).get(METADATA, "{}").encode()
    found = storage.decode_json(progress, Progress, url)
    _check(found, fit, url)
    _load(tensors, fit, url)
    fit.step = found.step


def _check(found: Progress, fit: Fit, url: str) -> None:
    """Check that a checkpoint is one of this fit. Raises UserError."""
    own, theirs = (
        msgspec.structs.asdict(settings) | {"data": data}
        for settings, data in ((fit.settings, fit.data), (found.settings, found.data))
    )
    differing = ", ".join(name for name in own if own[name] != theirs[name])
    if differing:
        raise UserError(
            f"{url} is the checkpoint of a training with other settings ({differing}): give the "
            "same to resume it, or remove it to start anew"
        )


def _load(tensors: dict[str, Tensor], fit: Fit, url: str) -> None:
    network = _without(NETWORK, tensors)
    expected = {name: tensor.shape for name, tensor in fit.network.state_dict().items()}
    check_shapes(url, network, expected)
    fit.network.load_state_dict(network)
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _without(ADAM, tensors).items():
        number, kind = name.split(".")
        states.setdefault(int(number), {})[kind] = tensor
    groups = fit.optimizer.state_dict()["param_groups"]
    fit.optimizer.load_state_dict({"state": states, "param_groups": groups})


def _without(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
