"""The loop: look at what can be wrong, build the parts, iterate."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels
from stargan_dist.data.skipped import Rows, SkippedSamples
from stargan_dist.data.sources import DataSources, open_sources
from stargan_dist.data.stream import Loaded, Slots, batches, describe_step, training_loader
from stargan_dist.distributed.world import REMEDY, World, launched_world_size
from stargan_dist.engines import check_engine, make_engine
from stargan_dist.engines.base import Engine
from stargan_dist.errors import STOPPED, UserError
from stargan_dist.launch.launcher_settings import check_launcher
from stargan_dist.objectives import recipes
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.async_writer import AsyncWriter
from stargan_dist.runs.checkpoint import CheckpointState
from stargan_dist.training.nonfinite import NonFiniteGuard
from stargan_dist.training.reporter import Reporter
from stargan_dist.training.train_state import TrainState

FINISHED = 0


@dataclass
class Plan:
    """What a run starts from: its data, and the steps done and state of what it resumes."""

    sets: DataSources
    start: int
    resume: CheckpointState | None
    skipped: Rows
    nonfinite: int


def plan(config: Config) -> Plan:
    """Look at everything that can be wrong before any process group starts.

    Raises:
        UserError: world and batch do not fit, the launcher asks for something else than the
            configuration, the engine cannot be had, the recipe is for other labels, shards are
            missing or too few, the run folder cannot be written or belongs to another configuration
            or data set, the checkpoint is damaged.
    """
    configs.check_world(config, launched_world_size())
    check_launcher(os.environ, config)
    check_engine(config)
    sets = open_sources(config.data, "train")
    sets.check(references=recipes.recipe_of(config).references)
    if config.data.on_bad_shard == "stop":
        sets.check_labels()
    storage.check_writable(config.run)
    resume = checkpoints.find(config.run)
    if resume is not None:
        # Resolved: a run of before a field was added was trained with what is now its default.
        saved = recipes.resolved(configs.from_dict(resume.config))
        configs.check_resumable(configs.to_dict(saved), recipes.resolved(config), config.run)
        if resume.data != sets.fingerprint:
            held = ", ".join(source.shards for source in config.data.sets.values())
            raise UserError(
                f"{config.run} was trained on other shards than {held} "
                "(their index differs): give the old ones to resume it, or another --run"
            )
    if resume is None:
        return Plan(sets, 0, None, {}, 0)
    return Plan(sets, resume.step, resume.state(), resume.skipped, resume.nonfinite)


class Signals:
    """Remembers that the run was asked to stop: by Ctrl-C, a scheduler or a person."""

    NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[signal.Signals, Any] = {}

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = number

    def __enter__(self) -> "Signals":
        self._before = {n: signal.signal(n, self._remember) for n in self.NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def train(config: Config) -> int:
    """Train a run, or go on with it. Returns FINISHED or STOPPED, the exit code.

    Raises:
        UserError: for anything a person has to mend.
    """
    storage.configure(config.storage)
    config = recipes.resolved(config)
    configs.check(config)  # once more: of two fields that belong together one may be the recipe's
    prepared = plan(config)
    with _alone(config.run):
        world = World(config.engine.timeout_seconds)
        with closing(world), Signals() as signals, world.explaining():
            return _Fit(config, prepared, world, signals)()


@contextmanager
def _alone(run: str) -> Iterator[None]:
    """Rank 0 holds the run, so that processes that do not know of each other cannot share it."""
    if int(os.environ.get("RANK", "0")):
        yield
        return
    with storage.locked(run, f"another process is training {run}; {REMEDY}"):
        yield


def _slots(config: Config, sets: DataSources) -> Slots:
    row = recipes.recipe_of(config)
    return Slots(
        sets,
        config.seed,
        config.model.image_size,
        config.model.latent_dim,
        config.batch_size,
        references=row.references,
        permuted=row.permuted,
        crops=row.crops,
        fast=config.data.fast_decoding,
        skip=config.data.on_bad_shard == "skip",
    )


def _loader(config: Config, slots: Slots, start: int, world: World) -> DataLoader[Loaded]:
    """This rank's batches of the steps that are left."""
    return training_loader(
        slots,
        range(start, config.steps),
        rank=world.rank,
        world_size=world.size,
        workers=config.data.workers,
        start_method=config.data.start_method,
        pin_memory=world.device.type == "cuda",
    )


def _logged_at(step: int, every: int, steps: int, sets: int) -> bool:
    """Whether a step is logged: every so many, and with several data sets the last one of each in
    turn, since a step is of one set."""
    turn = -(-step // every)
    return every < sets or turn * every - step == turn % sets or step == steps


def _at(step: int, every: int, steps: int) -> bool:
    """Whether something that is done every so many steps (0: never) is due: at the end, too."""
    return every > 0 and (step % every == 0 or step == steps)


def begin(
    config: Config, labels: Labels, world: World, state: CheckpointState | None = None
) -> tuple[TrainState, Engine]:
    """What is trained, as a checkpoint left it, in the hands of an engine."""
    training = TrainState(config, labels, world.device)
    if state:
        training.restore(state)
    engine = make_engine(config, training.parts, world)
    if state:
        training.restore_optimizers(engine, state)
    return training, engine


class _Fit:
    """The loop, and what is done beside it."""

    def __init__(self, config: Config, prepared: Plan, world: World, signals: Signals) -> None:
        self.config, self.world, self.signals = config, world, signals
        self.start = prepared.start
        sets, state = prepared.sets, prepared.resume
        self.sets = sets
        self.training, self.engine = begin(config, sets.labels, world, state)
        state = prepared.resume = None  # about a gigabyte at full width
        if world.is_main:
            storage.remove_leftovers(storage.join(config.run, checkpoints.FOLDER))
        self.reporter = Reporter(
            config, self.training, sets, world, self.start, lambda: bool(signals.received)
        )
        slots = _slots(config, sets)
        self.loader = _loader(config, slots, self.start, world)
        samples = partial(describe_step, slots)
        self.guard = NonFiniteGuard(config, world, samples, self.engine.scales, prepared.nonfinite)
        self.saver = AsyncWriter(background=config.checkpoint.background)
        self.skipped = SkippedSamples(prepared.skipped if world.is_main else {})

    def __call__(self) -> int:
        """Iterate until all steps are done, or a signal comes. Returns FINISHED or STOPPED."""
        config, world = self.config, self.world
        step, received = self.start, 0
        if step == 0:
            self.reporter.sample(0)
        # A run that was stopped in an evaluation takes it up again first.
        unmeasured = step > 0 and self._evaluated_at(step) and not self.reporter.evaluate(step)
        stream = batches(self.loader, self.skipped)
        with closing(self.engine), closing(self.saver), closing(stream), world.explaining():
            timed = self.reporter.stopwatch.timed(stream)
            while step < config.steps and not (received or unmeasured):
                terms = self._iterate(timed, step)
                step += 1
                terms = self.guard.watch(step, terms)

                received = world.all_reduce_max(self.signals.received)
                measured = self._evaluated_at(step)
                self._record(step, terms, saved=measured or bool(received))
                if measured:
                    self.saver.wait()  # what is measured is there, whatever happens meanwhile
                    unmeasured = bool(received) or not self.reporter.evaluate(step)
            self.saver.wait()

        finished = step >= config.steps and not unmeasured
        self.reporter.end(step, finished, world.all_reduce_max(self.signals.received))
        world.barrier()  # a rank that left while rank 0 saves would have the job ended
        return FINISHED if finished else STOPPED

    def _evaluated_at(self, step: int) -> bool:
        return _at(step, self.config.evaluation.every, self.config.steps)

    def _iterate(self, timed: Iterator[Batch], step: int) -> dict[str, Tensor]:
        self.world.mark_progress(f"step {step + 1}")
        batch = next(timed).to(self.world.device, self.training.dtype)
        self.world.mark_progress()  # the others may wait for one that waits for data
        micro_batches = batch.split(self.config.engine.accumulate)
        return self.training.iterate(self.engine, micro_batches, step)

    def _record(self, step: int, terms: dict[str, Tensor], *, saved: bool) -> None:
        """Log, show and save what is due after a step."""
        config = self.config
        sets = len(self.training.labels.spaces)
        logged = _logged_at(step, config.monitor.log_every, config.steps, sets)
        saved = saved or _at(step, config.checkpoint.every, config.steps)
        if logged or saved:
            everywhere = SkippedSamples.joined(self.world.all_gather(self.skipped.rows))
            everywhere.check(config.data.max_skipped)
            self.guard.check()
        if logged:
            self.reporter.log(step, terms, everywhere, self.guard.iterations)
        if _at(step, config.monitor.sample_every, config.steps):
            self.reporter.sample(step)
        if saved:
            self._save(step, self._facts(everywhere))
        self.saver.check()

    def _facts(self, skipped: SkippedSamples) -> dict[str, Any]:
        """What a checkpoint's manifest says of the run."""
        return {
            "config": configs.to_dict(self.config),
            "domains": self.sets.domains,
            "labels": self.sets.labels.to_dict(),
            "data": self.sets.fingerprint,
            "skipped": skipped.rows,
            "nonfinite": self.guard.iterations,
        }

    def _save(self, step: int, facts: dict[str, Any]) -> None:
        state = self.training.snapshot(self.engine, keep=self.world.is_main)
        if state:
            self.reporter.monitor.flush()  # a resumed run logs only what comes after this one
            self.saver.save(partial(_write, self.config, step, state, facts))


def _write(config: Config, step: int, state: CheckpointState, facts: dict[str, Any]) -> None:
    checkpoints.save(config.run, step, state, facts)
    keep = config.checkpoint
    checkpoints.apply_retention(
        config.run,
        step,
        config.evaluation.protocol,
        keep_last=keep.keep_last,
        keep_every=keep.keep_every,
    )
