"""Checks before a run, and the state that it resumes from."""

import os
from dataclasses import dataclass, field

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.data.skipped import SkippedCounts
from stargan_dist.data.sources import DataSources, open_sources
from stargan_dist.distributed.world import launched_world_size
from stargan_dist.engines import check_engine
from stargan_dist.errors import UserError
from stargan_dist.launch.launcher_settings import check_launcher
from stargan_dist.objectives.recipes import RunSpec, resolve
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.checkpoint import Checkpoint, CheckpointState


@dataclass
class PreparedRun:
    """The data of a run, and what it resumes from.

    Attributes:
        start: number of finished steps.
        state: of the checkpoint; None for a new run.
        skipped: samples replaced so far.
        nonfinite: iterations with a non-finite gradient so far.
    """

    sources: DataSources
    start: int = 0
    state: CheckpointState | None = None
    skipped: SkippedCounts = field(default_factory=dict)
    nonfinite: int = 0


def prepare(spec: RunSpec) -> PreparedRun:
    """Check everything that can be wrong before a process group starts.

    Raises:
        UserError: world and batch do not fit, the launcher's settings contradict the configuration,
            the engine is not available, the recipe does not accept the labels, shards are missing
            or too few, the run folder is not writable or belongs to another configuration or
            dataset, or the checkpoint is damaged.
    """
    config = spec.config
    configs.check_world(config, launched_world_size())
    check_launcher(os.environ, config)
    check_engine(config)
    sources = open_sources(config.data, "train")
    sources.check(with_references=spec.recipe.uses_references)
    if config.data.on_bad_shard == "stop":
        sources.check_labels()
    storage.check_writable(config.run)
    checkpoint = checkpoints.find(config.run)
    if checkpoint is None:
        return PreparedRun(sources)
    _check_same_run(checkpoint, spec, sources)
    return PreparedRun(
        sources, checkpoint.step, checkpoint.state(), checkpoint.skipped, checkpoint.nonfinite
    )


def _check_same_run(checkpoint: Checkpoint, spec: RunSpec, sources: DataSources) -> None:
    """Check that a checkpoint was trained with this configuration on this data."""
    config = spec.config
    # Resolved: a run from before a field existed was trained with its present default.
    saved = resolve(configs.from_dict(checkpoint.config)).config
    configs.check_resumable(saved, config, config.run)
    if checkpoint.data != sources.fingerprint:
        urls = ", ".join(source.shards for source in config.data.all_sources.values())
        raise UserError(
            f"{config.run} was trained on other shards than {urls} (their indexes differ): "
            "name the original shards to resume it, or another --run"
        )
