"""Checkpoints: `RUN/checkpoints/step_NNNNNNNN/`, complete or absent, on any URL.

A folder holds the networks, their averages (EMA) and the states of their optimizers as whole
tensors under the names of their parameters (safetensors), and `manifest.json` with the step, the
configuration and a hash of every file. The content does not depend on the engine or the number of
processes. There is no random state to save: every random draw is a function of (seed, step).
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from stargan_dist import storage
from stargan_dist.data.labels import Labels, domain_labels
from stargan_dist.errors import OutsideFault, UserError, explained
from stargan_dist.runs.scores import best_steps

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
LATEST = "latest"
NETWORKS, EMA, OPTIMIZERS = "networks.safetensors", "ema.safetensors", "optimizers.safetensors"
VERSION = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointState:
    """The tensors of a checkpoint, under names that begin with a network's letter and a dot.

    Attributes:
        networks: `G.PARAMETER`.
        ema: `G.PARAMETER`, averaged.
        optimizers: `G.PARAMETER:KIND` (such as exp_avg), and `G.step`.
        scales: for float16, by loss (D or G): the loss scale and its count of good iterations.
    """

    networks: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizers: dict[str, Tensor]
    scales: dict[str, list[float]]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, as its manifest describes it.

    Attributes:
        url: the folder.
        step: the number of completed iterations.
        config: the run's configuration as plain values.
        domains: the names of the labels.
        data: the fingerprint of the data sources.
        files: size and SHA-256 of each file, by name.
        labels: the label spaces of the data sources.
        skipped: samples that were replaced.
        scales: the loss scales of float16 (`CheckpointState.scales`).
        nonfinite: the number of iterations with a gradient that was not finite.
    """

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
        """Read a file and verify its hash.

        Raises:
            UserError: the file is missing or damaged.
        """
        url = storage.join(self.url, name)
        try:
            data = storage.read_bytes(url)
        except OSError as error:
            raise explained(f"cannot read {url}: {error}{self._remedy()}", error) from error
        if hashlib.sha256(data).hexdigest() != self.files[name]["sha256"]:
            reason = f"its hash differs from that in {MANIFEST}"
            raise UserError(f"{url} is damaged: {reason}{self._remedy()}")
        return data

    def _remedy(self) -> str:
        return f"; remove {self.url} to resume from the previous checkpoint"

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of a safetensors file. Raises UserError as `read` does."""
        return load(self.read(name))

    def state(self) -> CheckpointState:
        """Read everything that a run resumes from, on the CPU. Raises UserError as `read` does."""
        networks, ema, optimizers = map(self.tensors, (NETWORKS, EMA, OPTIMIZERS))
        return CheckpointState(networks, ema, optimizers, self.scales)


def step_name(step: int) -> str:
    """Return the name of a step in file names: `step_00005000`."""
    return f"step_{step:08d}"


def _folder(run: str) -> str:
    return storage.join(run, FOLDER)


def _read_manifest(url: str) -> Checkpoint:
    manifest_url = storage.join(url, MANIFEST)
    try:
        manifest = json.loads(storage.read_bytes(manifest_url))
    except (OSError, json.JSONDecodeError) as error:
        raise explained(f"cannot read the checkpoint {manifest_url}: {error}", error) from error
    version = manifest.pop("version", None)
    if version != VERSION:
        raise UserError(
            f"{manifest_url} has format version {version}, this program reads version {VERSION}: "
            "use the stargan_dist version that wrote it"
        )
    # Older manifests have no labels: the labels are the domains.
    labels = manifest.pop("labels", None)
    manifest["labels"] = Labels.from_dict(labels) if labels else domain_labels(manifest["domains"])
    return Checkpoint(url, **manifest)


def list_steps(run: str) -> list[int]:
    """Return the steps of the complete checkpoints of a run, in ascending order."""
    names = storage.list_names(_folder(run))
    steps = [int(name[5:]) for name in names if re.fullmatch(r"step_\d{8,}", name)]
    return sorted(
        s for s in steps if storage.exists(storage.join(_folder(run), step_name(s), MANIFEST))
    )


def find(run: str, selector: str = LATEST, protocol: str | None = None) -> Checkpoint | None:
    """Find a checkpoint of a run.

    Args:
        selector: `latest`, `best`, or a step such as 5000 or step_00005000. `latest` is the step
            named in the file `latest`, or the newest step if there is no such file. A run can be
            set back by writing an older step's name into that file.
        protocol: the evaluation protocol that determines `best`. None: the one in the
            configuration of the newest checkpoint.

    Returns:
        The checkpoint, or None if the run has no checkpoint yet.

    Raises:
        UserError: the run has checkpoints, but not the selected one.
    """
    steps = list_steps(run)
    if not steps:
        return None
    if selector == LATEST:
        step = _latest_step(run, steps)
    elif selector == "best":
        step = _best_step(run, steps, protocol)
    else:
        step = _parse_step(run, selector, steps)
    return _read_manifest(storage.join(_folder(run), step_name(step)))


def find_existing(run: str, selector: str = LATEST, protocol: str | None = None) -> Checkpoint:
    """Find a checkpoint as `find` does; raise UserError if the run has none yet."""
    checkpoint = find(run, selector, protocol)
    if checkpoint is None:
        raise UserError(f"{run} has no checkpoint: train it first")
    return checkpoint


def _parse_step(run: str, selector: str, steps: list[int]) -> int:
    if re.fullmatch(r"(step_)?\d+", selector):
        step = int(selector.removeprefix("step_"))
        if step in steps:
            return step
    raise UserError(f"{run} has no checkpoint {selector}; it has the steps {steps}")


def _best_step(run: str, steps: list[int], protocol: str | None) -> int:
    newest = _read_manifest(storage.join(_folder(run), step_name(steps[-1])))
    # Older configurations have no section `evaluation`.
    protocol = protocol or newest.config.get("evaluation", {}).get("protocol", "paper")
    best = best_steps(run, steps, protocol)
    if not best:
        raise UserError(
            f"no checkpoint of {run} has a complete evaluation under protocol {protocol}: "
            f"run python -m stargan_dist.evaluate --run {run} --protocol {protocol}"
        )
    return best[0]


def _latest_step(run: str, steps: list[int]) -> int:
    pointer = storage.join(_folder(run), LATEST)
    if storage.exists(pointer):
        name = storage.read_bytes(pointer).decode().strip()
        matching = [step for step in steps if step_name(step) == name]
        if matching:
            return matching[0]
    return steps[-1]


def tensors_of_network(letter: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of one network, under names without its letter."""
    prefix = f"{letter}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load_networks(networks: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Load the state of each network from tensors named `LETTER.PARAMETER`."""
    for letter, network in networks.items():
        network.load_state_dict(tensors_of_network(letter, tensors))


def _hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size and the hash of each file."""
    contents = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    return {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in contents.items()
    }


def save(run: str, step: int, state: CheckpointState, metadata: Mapping[str, Any]) -> None:
    """Publish a checkpoint and point `latest` at it. Called by one rank.

    Args:
        metadata: fields of the manifest: `config` (plain values), `domains`, `labels`
            (`Labels.to_dict`), `data` (the fingerprint of the data sources), `skipped` (samples
            that were replaced) and `nonfinite` (the number of iterations with a gradient that was
            not finite).

    Raises:
        UserError: the checkpoint cannot be written; OutsideFault if another try may succeed.
            Existing checkpoints stay.
    """
    url = storage.join(_folder(run), step_name(step))
    try:
        with storage.published_folder(url, last=MANIFEST) as folder:
            save_file(state.networks, folder / NETWORKS)
            save_file(state.ema, folder / EMA)
            save_file(state.optimizers, folder / OPTIMIZERS)
            files = _hash_files(folder)
            manifest = {"version": VERSION, "step": step, **metadata, "scales": state.scales}
            text = json.dumps(manifest | {"files": files}, indent=1) + "\n"
            (folder / MANIFEST).write_text(text)
        _point_latest(run, step)
    except SafetensorError as error:  # a write that failed
        raise OutsideFault(f"cannot save the checkpoint {url}: {error}") from error
    except OSError as error:
        raise explained(f"cannot save the checkpoint {url}: {error}", error) from error


def _point_latest(run: str, step: int) -> None:
    storage.write_bytes(storage.join(_folder(run), LATEST), f"{step_name(step)}\n".encode())


def superseded_steps(
    steps: Iterable[int], *, keep_last: int, keep_every: int, best: Iterable[int]
) -> list[int]:
    """Return the steps that retention removes.

    Args:
        keep_last: keep this many newest steps.
        keep_every: keep the multiples of this number; 0: none.
        best: keep these steps.
    """
    steps = sorted(steps)
    kept = {*steps[-keep_last:], *best}
    kept |= {step for step in steps if keep_every and step % keep_every == 0}
    return [step for step in steps if step not in kept]


def apply_retention(run: str, step: int, protocol: str, *, keep_last: int, keep_every: int) -> None:
    """Remove superseded checkpoints after a save at `step`.

    Later steps are ignored: a run that was set back has not reached them again. The manifest is
    removed first, because a folder without a manifest is not a checkpoint.
    """
    reached = [s for s in list_steps(run) if s <= step]
    try:
        best = best_steps(run, reached, protocol)
    except (OSError, UserError) as error:
        logger.warning("no checkpoint is removed: the best one cannot be determined (%s)", error)
        return
    for old in superseded_steps(reached, keep_last=keep_last, keep_every=keep_every, best=best):
        storage.remove_folder(storage.join(_folder(run), step_name(old)), first=MANIFEST)
