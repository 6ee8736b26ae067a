"""Checks before a run, and the state that it resumes from.

They are made once the process group stands: what one rank finds wrong ends all of them, told once,
and what ranks must share is compared before anything is loaded.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.data.skipped import SkippedCounts
from stargan_dist.data.sources import DataSources, open_sources
from stargan_dist.distributed.world import LAUNCH_REMEDY, World
from stargan_dist.engines import check_engine
from stargan_dist.errors import UserError
from stargan_dist.launch.deepspeed_settings import read_settings
from stargan_dist.models.landmarks import SavedLandmarks, of_run
from stargan_dist.objectives.recipes import RunSpec, check_labels, resolve
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import Checkpoint, CheckpointState
from stargan_dist.runs.owner import Owner, own
from stargan_dist.training.trackers import check_trackers

# Fields that ranks on different machines may need to set differently.
FIELDS_OF_A_RANK = (
    "data.cache", "data.cache_gib", "data.workers", "data.start_method", "data.ahead_mib",
)  # fmt: skip


@dataclass
class PreparedRun:
    """The data of a run, and what it resumes from.

    Attributes:
        owner: the claim of this training to the run.
        landmarks: the landmark network of the high-pass option.
        start: number of finished steps.
        state: of the checkpoint; None for a new run.
        skipped: samples replaced so far.
        nonfinite: iterations with a non-finite gradient so far.
    """

    sources: DataSources
    owner: Owner
    landmarks: SavedLandmarks | None = None
    start: int = 0
    state: CheckpointState | None = None
    skipped: SkippedCounts = field(default_factory=dict)
    nonfinite: int = 0


@contextmanager
def prepared_run(spec: RunSpec, world: World) -> Iterator[PreparedRun]:
    """Check a run, own it until the end of the context, and load what it resumes from. Collective.

    Rank 0 alone decides what the run resumes from. Other ranks receive the manifest from it, and
    the manifest has a hash of every file: a stale network filesystem cannot make ranks differ.

    Raises:
        UserError: ranks were started differently, world and batch do not fit, the engine, a
            tracker or the landmark network is not available, the recipe does not accept the labels,
            shards are missing or too few, the run folder is not writable, is in use or belongs to
            another configuration or dataset, or the checkpoint is damaged.
    """
    run = spec.config.run
    world.check_agreement(_values_to_share(spec.config))
    sources = world.run_on_all_ranks(lambda: _checked_sources(spec, world.size))
    landmarks = world.run_on_all_ranks(lambda: of_run(spec.config.model, run))
    deepspeed_file = spec.config.engine.deepspeed_config
    world.check_agreement(
        {
            "the fingerprint of the data": sources.fingerprint,
            "the landmark network": landmarks and landmarks.fingerprint(),
            deepspeed_file: world.run_on_all_ranks(lambda: read_settings(deepspeed_file)),
        }
    )
    # A start that is refused must not take the run over from a training that is in progress.
    world.broadcast_from_main(lambda: _check_run(spec, sources))
    with ExitStack() as stack:
        message = f"another process is training {run}; {LAUNCH_REMEDY}"
        owner = world.broadcast_from_main(lambda: stack.enter_context(own(run, message)))
        checkpoint = world.broadcast_from_main(lambda: _find_checkpoint(spec, sources))
        if checkpoint is None:
            yield PreparedRun(sources, owner, landmarks)
        else:
            state = world.run_on_all_ranks(checkpoint.state)
            found = checkpoint.manifest
            skipped = {shard: {**entry} for shard, entry in found.skipped.items()}
            yield PreparedRun(
                sources, owner, landmarks, found.step, state, skipped, found.nonfinite
            )


def _values_to_share(config: Config) -> dict[str, Any]:
    """Return what all ranks must have been started with, by name."""
    options = configs.flat(configs.to_dict(config))
    values = {f"--{k}": _shown(k, v) for k, v in options.items() if k not in FIELDS_OF_A_RANK}
    return values | {"stargan_dist": version("stargan_dist"), "torch": torch.__version__}


def _shown(name: str, value: Any) -> Any:
    """Return a value to compare and print; options of the storage may be secret."""
    if name.startswith("storage.options"):
        return f"(hash {hashlib.sha256(repr(value).encode()).hexdigest()[:8]})"
    return value


def _checked_sources(spec: RunSpec, world_size: int) -> DataSources:
    config = spec.config
    configs.check_world(config, world_size, spec.recipe.sources_together)
    check_engine(config, world_size)
    check_trackers(config.monitor.trackers)
    sources = open_sources(config.data, "train")
    sources.check(with_references=spec.recipe.uses_references)
    check_labels(spec, sources.labels)
    if config.data.on_bad_shard == "stop":
        sources.check_labels()
    return sources


def _check_run(spec: RunSpec, sources: DataSources) -> None:
    storage.check_writable(spec.config.run)
    _find_checkpoint(spec, sources)


def _find_checkpoint(spec: RunSpec, sources: DataSources) -> Checkpoint | None:
    """Return the latest checkpoint, if any.

    Raises:
        UserError: it is damaged, or was trained with another configuration or on other data.
    """
    config = spec.config
    checkpoint = checkpoints.find(config.run)
    if checkpoint is None:
        return None
    # Resolved: a run from before a field existed was trained with its present default.
    saved = resolve(configs.from_dict(checkpoint.manifest.config)).config
    configs.check_resumable(saved, config, config.run)
    same_labels = checkpoint.manifest.labels == sources.labels
    if checkpoint.manifest.data != sources.fingerprint or not same_labels:
        urls = ", ".join(source.shards for source in config.data.all_sources.values())
        raise UserError(
            f"{config.run} was trained on other shards than {urls} (their indexes differ): "
            "name the original shards to resume it, or another --run"
        )
    return checkpoint
