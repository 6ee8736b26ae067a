"""The training loop."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config, InitConfig, Origins
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels
from stargan_dist.data.loading import iterate_batches, training_loader
from stargan_dist.data.skipped import SkippedSamples
from stargan_dist.data.sources import DataSources
from stargan_dist.data.stream import LoaderOutput, Slots, describe_step
from stargan_dist.distributed.world import World
from stargan_dist.engines import make_engine
from stargan_dist.engines.base import Engine
from stargan_dist.errors import STOPPED
from stargan_dist.models import authors
from stargan_dist.models.landmarks import SavedLandmarks, keep_copy
from stargan_dist.models.opening import open_model
from stargan_dist.models.saved import SavedModel
from stargan_dist.objectives.recipes import RunSpec, resolve
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.async_writer import AsyncWriter
from stargan_dist.runs.checkpoint import CheckpointState
from stargan_dist.runs.owner import Owner
from stargan_dist.training.nonfinite import NonFiniteGuard
from stargan_dist.training.preparation import PreparedRun, prepared_run
from stargan_dist.training.reporter import Reporter
from stargan_dist.training.signals import StopSignals
from stargan_dist.training.train_state import TrainState

FINISHED = 0
logger = logging.getLogger(__name__)

NO_ORIGINS = Origins()
# Folders of a run that only its training writes to; "": the run's own.
WRITTEN_FOLDERS = ("", checkpoints.FOLDER, "samples", "nonfinite", "profile")


def train(config: Config, origins: Origins = NO_ORIGINS) -> int:
    """Train a run, or resume it. Returns the exit code, FINISHED or STOPPED.

    Args:
        origins: of options that are not the user's own, to be reported.

    Raises:
        UserError: something that the user must correct.
    """
    storage.configure(config.storage)
    spec = resolve(config)
    configs.check(spec.config)  # again: a field may contradict one that the recipe filled in
    world = World(spec.config.engine.timeout_seconds)
    with (
        closing(world),
        StopSignals() as signals,
        world.reporting_errors(),
        prepared_run(spec, world) as prepared,
    ):
        return Trainer(spec, prepared, world, signals, origins).train()


def initialise(
    spec: RunSpec,
    labels: Labels,
    world: World,
    checkpoint_state: CheckpointState | None = None,
    landmarks: SavedLandmarks | None = None,
) -> tuple[TrainState, Engine]:
    """Build the train state and its engine, and load the state of a checkpoint. Collective."""
    state = TrainState(spec, labels, world.device, landmarks)
    if checkpoint_state:
        state.restore(checkpoint_state)
    elif spec.config.init.model:
        model = world.broadcast_from_main(lambda: _initial_model(spec.config.init))
        table = world.run_on_all_ranks(lambda: state.inherit(model))
        if world.is_main:
            logger.info("initial weights from %s\n%s", spec.config.init.model, table)
    engine = make_engine(spec.config, state.parts, world)
    if checkpoint_state:
        state.restore_shares(engine, checkpoint_state)
    return state, engine


def _initial_model(init: InitConfig) -> SavedModel:
    options = authors.Options(init.domains)
    return open_model(init.model, init.checkpoint, discriminator=True, options=options)


class Trainer:
    """The loop, and the parts that it uses."""

    def __init__(
        self,
        spec: RunSpec,
        prepared: PreparedRun,
        world: World,
        signals: StopSignals,
        origins: Origins = NO_ORIGINS,
    ) -> None:
        config = self.config = spec.config
        self.world, self.signals = world, signals
        self.start, self.sources, self.owner = prepared.start, prepared.sources, prepared.owner
        labels = self.sources.labels
        landmarks = prepared.landmarks
        self.state, self.engine = initialise(spec, labels, world, prepared.state, landmarks)
        prepared.state = None  # about a gigabyte at full width
        if world.is_main:
            for folder in WRITTEN_FOLDERS:
                storage.remove_leftovers(storage.join(config.run, folder))
            if landmarks:
                keep_copy(landmarks, config.run)
        self.reporter = Reporter(
            self.state, self.sources, world, self.start, lambda: bool(signals.received), origins
        )
        slots = _slots(spec, self.sources, self.state.objective.reference_turns)
        self.loader = _loader(config, slots, self.start, world)
        samples = partial(describe_step, slots)
        scales = self.engine.loss_scales
        self.guard = NonFiniteGuard(config, world, samples, scales, prepared.nonfinite)
        self.writer = AsyncWriter(background=config.checkpoint.background)
        self.skipped = SkippedSamples(prepared.skipped if world.is_main else {})

    def train(self) -> int:
        """Iterate until all steps are done or a signal arrives. Returns FINISHED or STOPPED."""
        config, world, state, engine = self.config, self.world, self.state, self.engine
        step, received = self.start, 0
        if step == 0:
            self.reporter.sample(step)
        # A run that was stopped during an evaluation completes it first.
        evaluated = step == 0 or not self._evaluates_at(step) or self.reporter.evaluate(step)
        with self._stream() as stream:
            while step < config.steps and evaluated and not received:
                world.mark_progress(f"step {step + 1}")
                batch = next(stream).to(world.device, state.dtype)
                world.mark_progress()  # a rank that waits for data is not one that hangs

                state.set_learning_rates(step)
                micro_batches = batch.split(config.engine.accumulate)
                terms = state.objective.iterate(engine, micro_batches, step)
                state.update_averages(engine, step)
                step += 1
                terms = self.guard.watch(step, terms)
                received = world.all_reduce_max(self.signals.received)

                logs, saves = self._logs_at(step), self._saves_at(step) or received
                if logs or saves:
                    skipped = self._checked_faults()
                if logs:
                    self.reporter.log(step, terms, skipped, self.guard.iterations)
                if self._is_due(step, config.monitor.sample_every):
                    self.reporter.sample(step)
                if saves:
                    self._save(step, skipped)
                self.writer.check()
                if self._evaluates_at(step):
                    self.writer.wait()  # the checkpoint exists, whatever happens meanwhile
                    evaluated = not received and self.reporter.evaluate(step)
            self.writer.wait()
        return self._end(step, finished=step >= config.steps and evaluated)

    @contextmanager
    def _stream(self) -> Iterator[Iterator[Batch]]:
        """Yield the batches of the remaining steps. Close all parts of the loop at the end."""
        with ExitStack() as stack:
            stack.enter_context(closing(self.engine))
            stack.enter_context(closing(self.writer))
            stream = stack.enter_context(
                closing(iterate_batches(self.loader, self.skipped, self.reporter.traffic))
            )
            stack.enter_context(self.world.reporting_errors())
            yield self.reporter.watched(stream)

    # Which steps log, save and evaluate.

    def _is_due(self, step: int, every: int) -> bool:
        """Return True every `every` steps (0: never) and at the last step."""
        return every > 0 and (step % every == 0 or step == self.config.steps)

    def _logs_at(self, step: int) -> bool:
        every, num_sources = self.config.monitor.log_every, len(self.sources.labels.spaces)
        return logs_at(step, every, self.config.steps, num_sources)

    def _evaluates_at(self, step: int) -> bool:
        return self._is_due(step, self.config.evaluation.every)

    def _saves_at(self, step: int) -> bool:
        return self._is_due(step, self.config.checkpoint.every) or self._evaluates_at(step)

    # What these steps do.

    def _checked_faults(self) -> SkippedSamples:
        """Return the samples replaced on all ranks; stop the run if there are too many faults."""
        skipped = SkippedSamples.merge(self.world.all_gather(self.skipped.counts))
        skipped.check(self.config.data.max_skipped)
        self.guard.check()
        return skipped

    def _save(self, step: int, skipped: SkippedSamples) -> None:
        state = self.state.snapshot(self.engine, keep=self.world.is_main)
        if state:
            self.reporter.flush()  # a resumed run logs only what follows this checkpoint
            metadata = self._metadata(skipped)
            self.writer.save(partial(_write, self.config, self.owner, step, state, metadata))

    def _metadata(self, skipped: SkippedSamples) -> dict[str, Any]:
        """Return what a checkpoint's manifest holds beside its files."""
        return {
            "config": configs.to_dict(self.config),
            "domains": self.sources.domains,
            "labels": self.sources.labels.to_dict(),
            "data": self.sources.fingerprint,
            "skipped": skipped.counts,
            "nonfinite": self.guard.iterations,
            "fence": self.owner.fence,
        }

    def _end(self, step: int, *, finished: bool) -> int:
        received = self.world.all_reduce_max(self.signals.received)
        self.reporter.end(step, finished, received)
        self.world.barrier()  # the launcher ends the job once a rank exits: rank 0 still writes
        return FINISHED if finished else STOPPED


def logs_at(step: int, every: int, steps: int, num_sources: int) -> bool:
    """Return True if a step is logged: every `every` steps, and at the last step.

    A step belongs to one data source. With several sources, the logged steps alternate between
    them: interval after interval, the last step of the next source.
    """
    interval = -(-step // every)
    among_last = interval * every - step < num_sources
    of_next_source = step % num_sources == interval % num_sources
    return every < num_sources or (among_last and of_next_source) or step == steps


def _slots(spec: RunSpec, sources: DataSources, reference_turns: Sequence[bool]) -> Slots:
    config, recipe = spec.config, spec.recipe
    return Slots(
        sources,
        config.seed,
        config.model.image_size,
        config.model.latent_dim,
        config.batch_size,
        reference_turns=reference_turns,
        targets=recipe.targets,
        crop=recipe.crop,
        fast_decoding=config.data.fast_decoding,
        replace_unreadable=config.data.on_bad_shard == "skip",
    )


def _loader(config: Config, slots: Slots, start: int, world: World) -> DataLoader[LoaderOutput]:
    """Return the loader of this rank's share of the remaining steps."""
    return training_loader(
        slots,
        range(start, config.steps),
        rank=world.rank,
        world_size=world.size,
        workers=config.data.workers,
        start_method=config.data.start_method,
        pin_memory=world.device.type == "cuda",
        ahead_bytes=config.data.ahead_mib * 2**20,
    )


def _write(
    config: Config, owner: Owner, step: int, state: CheckpointState, metadata: dict[str, Any]
) -> None:
    """Write a checkpoint and apply the retention, if this training still owns the run."""
    checkpoints.save(config.run, step, state, metadata, owner.check)
    keep = config.checkpoint
    checkpoints.apply_retention(
        config.run,
        step,
        config.evaluation.protocol,
        keep_last=keep.keep_last,
        keep_every=keep.keep_every,
    )
