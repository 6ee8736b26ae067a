"""Checkpoints: `RUN/checkpoints/step_NNNNNNNN/`, complete or absent, on any URL.

A folder holds the networks, their averages (EMA) and the states of their optimizers as whole
tensors under the names of their parameters (safetensors), the pool of fakes of recipes that have
one, and `manifest.json` with the step, the configuration and a hash of every file. The content does
not depend on the engine or the number of processes. There is no random state to save: every random
draw is a function of (seed, step).
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from stargan_dist import storage
from stargan_dist.errors import OutsideFault, UserError, explained
from stargan_dist.runs import manifest as manifests
from stargan_dist.runs.manifest import Manifest
from stargan_dist.runs.scores import best_steps

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
LATEST = "latest"
NETWORKS, EMA, OPTIMIZERS = "networks.safetensors", "ema.safetensors", "optimizers.safetensors"
POOL = "pool.safetensors"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointState:
    """The tensors of a checkpoint. Those of networks have names with its letter and a dot.

    Attributes:
        networks: `G.PARAMETER`.
        ema: `G.PARAMETER`, averaged.
        optimizers: `G.PARAMETER:KIND` (such as exp_avg), and `G.step`.
        scales: for float16, by loss (D or G): the loss scale and its count of good iterations.
        pool: `images` of the pools of the global batch (objectives/pool.py); else empty.
    """

    networks: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizers: dict[str, Tensor]
    scales: dict[str, list[float]]
    pool: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        url: the folder.
        manifest: what it holds.
    """

    url: str
    manifest: Manifest

    @property
    def step(self) -> int:
        """The number of completed iterations."""
        return self.manifest.step

    def read(self, name: str) -> bytes:
        """Read a file and verify its hash.

        Raises:
            UserError: the file is missing or damaged.
        """
        url, remedy = storage.join(self.url, name), _remedy(self.url)
        try:
            data = storage.read_bytes(url)
        except OSError as error:
            raise explained(f"cannot read {url}: {error}; {remedy}", error) from error
        entry = self.manifest.files.get(name)
        if entry is None or hashlib.sha256(data).hexdigest() != entry.sha256:
            reason = f"its hash differs from that in {MANIFEST}"
            raise UserError(f"{url} is damaged: {reason}; {remedy}")
        return data

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of a safetensors file. Raises UserError as `read` does."""
        try:
            return load(self.read(name))
        except SafetensorError as error:  # of a manifest without a hash of itself
            url = storage.join(self.url, name)
            raise UserError(f"{url} is damaged: {error}; {_remedy(self.url)}") from error

    def state(self) -> CheckpointState:
        """Read everything that a run resumes from, on the CPU. Raises UserError as `read` does."""
        networks, ema, optimizers = map(self.tensors, (NETWORKS, EMA, OPTIMIZERS))
        pool = self.tensors(POOL) if POOL in self.manifest.files else {}
        return CheckpointState(networks, ema, optimizers, self.manifest.scales, pool)


def step_name(step: int) -> str:
    """Return the name of a step in file names: `step_00005000`."""
    return f"step_{step:08d}"


def _folder(run: str) -> str:
    return storage.join(run, FOLDER)


def _remedy(url: str) -> str:
    pointer = storage.join(storage.parent(url), LATEST)
    return f"to resume from an earlier checkpoint, write its step into {pointer}"


def read(run: str, step: int) -> Checkpoint:
    """Read the manifest of a checkpoint.

    Raises:
        UserError: it is missing or damaged.
    """
    url = storage.join(_folder(run), step_name(step))
    manifest_url = storage.join(url, MANIFEST)
    try:
        data = storage.read_bytes(manifest_url)
    except OSError as error:
        raise explained(f"cannot read the checkpoint {manifest_url}: {error}", error) from error
    return Checkpoint(url, manifests.from_json(data, manifest_url, step, _remedy(url)))


def list_steps(run: str) -> list[int]:
    """Return the steps of the complete checkpoints of a run, in ascending order."""
    folder = _folder(run)
    return [
        step
        for step in _named_steps(run)
        if storage.exists(storage.join(folder, step_name(step), MANIFEST))
    ]


def _named_steps(run: str) -> list[int]:
    """Return the steps of all checkpoint folders, complete or not, in ascending order."""
    names = storage.list_names(_folder(run))
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step_\d{8,12}", name))


def find(run: str, selector: str = LATEST, protocol: str | None = None) -> Checkpoint | None:
    """Find a checkpoint of a run.

    Args:
        selector: `latest`, `best`, or a step such as 5000 or step_00005000. `latest` is the step
            in the file `latest`, or the newest step if there is no such file. A run can be set back
            by writing an older step into that file.
        protocol: the evaluation protocol that determines `best`. None: the one in the
            configuration of the newest checkpoint.

    Returns:
        The checkpoint, or None if the run has no checkpoint yet.

    Raises:
        UserError: the run has checkpoints, but not the selected one, or its manifest is damaged.
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
    return read(run, step)


def find_existing(run: str, selector: str = LATEST, protocol: str | None = None) -> Checkpoint:
    """Find a checkpoint as `find` does; raise UserError if the run has none yet."""
    checkpoint = find(run, selector, protocol)
    if checkpoint is None:
        raise UserError(f"{run} has no checkpoint: train it first")
    return checkpoint


def _step_of(text: str, steps: list[int]) -> int | None:
    """Return the step that a text such as 5000, step_5000 or step_00005000 names, if it exists."""
    match = re.fullmatch(r"(?:step_)?(\d{1,12})", text)
    return int(match[1]) if match and int(match[1]) in steps else None


def _parse_step(run: str, selector: str, steps: list[int]) -> int:
    step = _step_of(selector, steps)
    if step is None:
        raise UserError(f"{run} has no checkpoint {selector}; it has the steps {steps}")
    return step


def _best_step(run: str, steps: list[int], protocol: str | None) -> int:
    newest = read(run, steps[-1]).manifest
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
    try:
        data = storage.read_bytes(pointer)
    except FileNotFoundError:
        return steps[-1]
    except OSError as error:
        raise explained(f"cannot read {pointer}: {error}", error) from error
    # People write this file, too: with an editor's byte order mark, or a slash from a completion.
    text = data.decode("utf-8-sig", errors="replace").strip().rstrip("/")
    step = _step_of(text, steps)
    if step is None:
        raise UserError(
            f"{pointer} says {text[:40]!r}, which is no complete checkpoint of this run: write one "
            f"of the steps {steps} into it, or remove it to use the newest"
        )
    return step


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


def save(
    run: str,
    step: int,
    state: CheckpointState,
    metadata: Mapping[str, Any],
    confirm: Callable[[], None] = lambda: None,
) -> None:
    """Publish a checkpoint and point `latest` at it. Called by one rank.

    Args:
        metadata: fields of the manifest: `config` (plain values), `domains`, `labels`
            (`Labels.to_dict`), `data` (the fingerprint of the data sources), `skipped` (samples
            that were replaced), `nonfinite` (the number of iterations with a gradient that was
            not finite) and `fence` (the number of this training).
        confirm: called before anything is published; raises an error if it must not be.

    Raises:
        UserError: the checkpoint cannot be written; OutsideFault if another try may succeed.
            Existing checkpoints stay.
    """
    url = storage.join(_folder(run), step_name(step))
    try:
        with storage.published_folder(url, last=MANIFEST, confirm=confirm) as folder:
            save_file(state.networks, folder / NETWORKS)
            save_file(state.ema, folder / EMA)
            save_file(state.optimizers, folder / OPTIMIZERS)
            if state.pool:
                save_file(state.pool, folder / POOL)
            files = _hash_files(folder)
            fields = {"step": step, **metadata, "scales": state.scales, "files": files}
            (folder / MANIFEST).write_bytes(manifests.to_json(fields))
        confirm()
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
    """Remove superseded checkpoints after a save at `step`, and what is left of earlier ones.

    Later steps are ignored: a run that was set back has not reached them again. The manifest is
    removed first, because a folder without a manifest is not a checkpoint. A folder that cannot be
    removed now is tried again after the next save.
    """
    try:
        reached = [s for s in list_steps(run) if s <= step]
        best = best_steps(run, reached, protocol)
    except (OSError, UserError) as error:
        logger.warning("no checkpoint is removed: the best one cannot be determined (%s)", error)
        return
    superseded = superseded_steps(reached, keep_last=keep_last, keep_every=keep_every, best=best)
    incomplete = [s for s in _named_steps(run) if s < step and s not in reached]
    for old in (*superseded, *incomplete):
        url = storage.join(_folder(run), step_name(old))
        try:
            storage.remove_folder(url, first=MANIFEST)
        except OSError as error:
            logger.warning("cannot remove the old checkpoint %s yet: %s", url, error)
