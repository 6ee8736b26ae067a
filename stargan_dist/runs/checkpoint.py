"""Checkpoints: `RUN/checkpoints/step_NNNNNNNN/`, complete or absent, on any URL.

A folder holds the networks, their averages and the states of their optimizers, whole and by the
names of their parameters (safetensors), and `manifest.json` with the step, the configuration and
a hash of every file. Nothing in it depends on the engine or the number of processes. There is no
random state to save: whatever is drawn is a function of (seed, step).
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from stargan_dist import storage
from stargan_dist.data.labels import Labels, domain_labels
from stargan_dist.errors import UserError
from stargan_dist.runs.scores import best_steps

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
LATEST = "latest"
NETWORKS, EMA, OPTIMIZERS = "networks.safetensors", "ema.safetensors", "optimizers.safetensors"
VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. `step` iterations are done; `config` is that of the run."""

    url: str
    step: int
    config: dict[str, Any]
    domains: list[str]
    data: str
    files: dict[str, dict[str, Any]]
    labels: Labels
    skipped: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, list[float]] = field(default_factory=dict)
    nonfinite: int = 0

    def read(self, name: str) -> bytes:
        """The bytes of a file, which must be those that were saved.

        Raises:
            UserError: they are missing or damaged.
        """
        where = storage.join(self.url, name)
        try:
            data = storage.read_bytes(where)
        except OSError as error:
            raise UserError(f"cannot read {where}: {error}{self._remedy()}") from error
        if hashlib.sha256(data).hexdigest() != self.files[name]["sha256"]:
            raise UserError(f"{where} is damaged, its hash is not the manifest's{self._remedy()}")
        return data

    def _remedy(self) -> str:
        return f"; remove {self.url} to go on from the checkpoint before it"

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load(self.read(name))

    def state(self) -> "State":
        """Everything that a run goes on from, on the CPU."""
        networks, ema, optimizers = map(self.tensors, (NETWORKS, EMA, OPTIMIZERS))
        return State(networks, ema, optimizers, self.scales)


@dataclass(frozen=True)
class State:
    """What is saved, by names that begin with a network's letter and a dot.

    Attributes:
        networks, ema: `G.PARAMETER`.
        optimizers: `G.PARAMETER:KIND` (such as exp_avg), and `G.step`.
        scales: of float16, by side: the loss scale and its count of good iterations.
    """

    networks: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizers: dict[str, Tensor]
    scales: dict[str, list[float]]


def step_name(step: int) -> str:
    return f"step_{step:08d}"


def _folder(run: str) -> str:
    return storage.join(run, FOLDER)


def _read_manifest(url: str) -> Checkpoint:
    where = storage.join(url, MANIFEST)
    try:
        row = json.loads(storage.read_bytes(where))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the checkpoint {where}: {error}") from error
    if row.pop("version", None) != VERSION:
        raise UserError(f"{where} is of another version of this program")
    # Runs of before there were other labels had domains alone.
    labels = row.pop("labels", None)
    row["labels"] = Labels.from_dict(labels) if labels else domain_labels(row["domains"])
    return Checkpoint(url, **row)


def list_steps(run: str) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    names = storage.list_names(_folder(run))
    steps = [int(name[5:]) for name in names if re.fullmatch(r"step_\d{8,}", name)]
    return sorted(
        s for s in steps if storage.exists(storage.join(_folder(run), step_name(s), MANIFEST))
    )


def find(run: str, which: str = LATEST, protocol: str | None = None) -> Checkpoint | None:
    """A checkpoint of a run: `latest`, `best`, or a step such as 5000 or step_00005000.

    `latest` is what the file of that name says, so a run can be set back by writing an older
    name into it; without the file, the newest one. `best` is by evaluations with a protocol; None:
    that of the run's configuration. None if the run has no checkpoint yet.

    Raises:
        UserError: the one asked for does not exist.
    """
    steps = list_steps(run)
    if not steps:
        return None
    if which == LATEST:
        return _read_manifest(storage.join(_folder(run), step_name(_latest(run, steps))))
    if which == "best":
        return _read_manifest(storage.join(_folder(run), step_name(_best(run, steps, protocol))))
    step = int(which.removeprefix("step_")) if re.fullmatch(r"(step_)?\d+", which) else None
    if step not in steps:
        raise UserError(f"{run} has no checkpoint {which}; it has the steps {steps}")
    return _read_manifest(storage.join(_folder(run), step_name(step)))


def find_existing(run: str, which: str = LATEST, protocol: str | None = None) -> Checkpoint:
    """As `find`; raises UserError where the run has no checkpoint yet."""
    found = find(run, which, protocol)
    if found is None:
        raise UserError(f"{run} has no checkpoint: train it first")
    return found


def _best(run: str, steps: list[int], protocol: str | None) -> int:
    newest = _read_manifest(storage.join(_folder(run), step_name(steps[-1])))
    # Runs of before there was this choice have none.
    protocol = protocol or newest.config.get("evaluation", {}).get("protocol", "paper")
    best = best_steps(run, steps, protocol)
    if not best:
        raise UserError(
            f"none of the checkpoints of {run} has a complete evaluation by protocol {protocol}: "
            f"python -m stargan_dist.evaluate --run {run} --protocol {protocol}"
        )
    return best[0]


def _latest(run: str, steps: list[int]) -> int:
    pointer = storage.join(_folder(run), LATEST)
    if storage.exists(pointer):
        name = storage.read_bytes(pointer).decode().strip()
        named = [step for step in steps if step_name(step) == name]
        if named:
            return named[0]
    return steps[-1]


def tensors_of_network(letter: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one network, by names without its letter."""
    prefix = f"{letter}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load_networks(networks: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Fill networks from tensors named `LETTER.parameter`."""
    for letter, network in networks.items():
        network.load_state_dict(tensors_of_network(letter, tensors))


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file."""
    contents = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    return {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    }


def save(run: str, step: int, state: State, facts: Mapping[str, Any]) -> None:
    """Publish a checkpoint and point `latest` at it. For one rank to call.

    Args:
        facts: `config` (plain values), `domains`, `labels` (`Labels.to_dict`), `data`, the
            fingerprint of the sets, and
            `skipped`, the samples that were replaced, `nonfinite`, the iterations in which a
            gradient was not finite.

    Raises:
        UserError: it cannot be written. What was there before stays.
    """
    url = storage.join(_folder(run), step_name(step))
    try:
        with storage.published_folder(url, last=MANIFEST) as folder:
            save_file(state.networks, folder / NETWORKS)
            save_file(state.ema, folder / EMA)
            save_file(state.optimizers, folder / OPTIMIZERS)
            files = _describe(folder)
            manifest = {"version": VERSION, "step": step, **facts, "scales": state.scales}
            text = json.dumps(manifest | {"files": files}, indent=1) + "\n"
            (folder / MANIFEST).write_text(text)
        _point_latest(run, step)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save the checkpoint {url}: {error}") from error


def _point_latest(run: str, step: int) -> None:
    storage.write_bytes(storage.join(_folder(run), LATEST), f"{step_name(step)}\n".encode())


def superseded_steps(
    steps: Iterable[int], *, keep_last: int, keep_every: int, best: Iterable[int]
) -> list[int]:
    """The steps that may go: not among the newest, no multiple of `keep_every`, not the best."""
    steps = sorted(steps)
    kept = {*steps[-keep_last:], *best}
    kept |= {step for step in steps if keep_every and step % keep_every == 0}
    return [step for step in steps if step not in kept]


def apply_retention(run: str, step: int, protocol: str, *, keep_last: int, keep_every: int) -> None:
    """Apply the retention after a save at `step`.

    Later steps, which a run that was set back has not reached again, do not count. The manifest
    goes first: a folder that is half removed is no checkpoint.
    """
    reached = [s for s in list_steps(run) if s <= step]
    try:
        best = best_steps(run, reached, protocol)
    except (OSError, UserError) as error:
        print(f"no checkpoint is removed: the best is not known ({error})", file=sys.stderr)
        return
    for old in superseded_steps(reached, keep_last=keep_last, keep_every=keep_every, best=best):
        storage.remove_folder(storage.join(_folder(run), step_name(old)), first=MANIFEST)
