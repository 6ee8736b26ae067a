"""The loop: look at what can be wrong, build the parts, iterate."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from stargan_dist import access, storage
from stargan_dist import checkpoint as checkpoints
from stargan_dist import config as configs
from stargan_dist.checkpoint import State
from stargan_dist.config import Config
from stargan_dist.data.reader import ShardReader, check_split, open_reader
from stargan_dist.data.skipped import Rows, Skipped
from stargan_dist.data.stream import Loaded, Slots, batches, samples_of, training_loader
from stargan_dist.engines import check_engine, make_engine
from stargan_dist.engines.base import Engine
from stargan_dist.errors import UserError
from stargan_dist.launched import check_launcher
from stargan_dist.nonfinite import Guard
from stargan_dist.reporter import Reporter
from stargan_dist.saver import Saver
from stargan_dist.state import Training
from stargan_dist.world import REMEDY, World, launched_world_size

FINISHED = 0
STOPPED = 75  # EX_TEMPFAIL: a signal came, the state is saved, the same command goes on


@dataclass
class Plan:
    """What a run starts from: its data, and the steps done and state of what it resumes."""

    reader: ShardReader
    start: int
    resume: State | None
    skipped: Rows


def plan(config: Config) -> Plan:
    """Look at everything that can be wrong before any process group starts.

    Raises:
        UserError: world and batch do not fit, the launcher asks for something else than the
            configuration, the engine cannot be had, shards are missing or too few, the run folder
            cannot be written or belongs to another configuration or data set, the checkpoint is
            damaged.
    """
    configs.check_world(config, launched_world_size())
    check_launcher(os.environ, config)
    check_engine(config)
    reader = open_reader(config.data, "train")
    index = reader.index
    if len(index.domains) < 2:
        raise UserError(f"{config.data.shards} has one domain: there is nothing to translate to")
    check_split(index, "train", 2, config.data.shards)
    storage.check_writable(config.run)
    resume = checkpoints.find(config.run)
    if resume is not None:
        configs.check_resumable(resume.config, config, config.run)
        if resume.data != index.fingerprint:
            raise UserError(
                f"{config.run} was trained on other shards than {config.data.shards} "
                "(their index differs): give the old ones to resume it, or another --run"
            )
    if resume is None:
        return Plan(reader, 0, None, {})
    return Plan(reader, resume.step, resume.state(), resume.skipped)


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
    access.use(config.storage)
    prepared = plan(config)
    with _alone(config.run):
        world = World(config.engine.timeout_seconds)
        try:
            with Signals() as signals:
                return _fit(config, prepared, world, signals)
        except Exception as error:
            raise world.explained(error) from error
        finally:
            world.close()


@contextmanager
def _alone(run: str) -> Iterator[None]:
    """Rank 0 holds the run, so that processes that do not know of each other cannot share it."""
    if int(os.environ.get("RANK", "0")):
        yield
        return
    with storage.locked(run, f"another process is training {run}; {REMEDY}"):
        yield


def _slots(config: Config, reader: ShardReader) -> Slots:
    return Slots(
        reader,
        config.seed,
        config.model.image_size,
        config.model.latent_dim,
        fast=config.data.fast_decoding,
        skip=config.data.on_bad_shard == "skip",
    )


def _loader(config: Config, slots: Slots, start: int, world: World) -> DataLoader[Loaded]:
    """This rank's batches of the steps that are left."""
    return training_loader(
        slots,
        range(start, config.steps),
        config.batch_size,
        rank=world.rank,
        world_size=world.size,
        workers=config.data.workers,
        start_method=config.data.start_method,
        pin_memory=world.device.type == "cuda",
    )


def _at(step: int, every: int, steps: int) -> bool:
    """Whether something that is done every so many steps (0: never) is due: at the end, too."""
    return every > 0 and (step % every == 0 or step == steps)


def _begin(config: Config, prepared: Plan, world: World) -> tuple[Training, Engine]:
    """What is trained, as the checkpoint left it, in the hands of an engine."""
    training = Training(config, prepared.reader.index, world.device)
    state, prepared.resume = prepared.resume, None  # about a gigabyte at full width
    if state:
        training.restore(state)
    engine = make_engine(config, training.parts, world)
    if state:
        training.restore_optimizers(engine, state)
    return training, engine


def _fit(config: Config, prepared: Plan, world: World, signals: Signals) -> int:
    start = prepared.start
    training, engine = _begin(config, prepared, world)
    if world.is_main:
        storage.remove_leftovers(storage.join(config.run, checkpoints.FOLDER))
    reporter = Reporter(config, training, world, start, lambda: bool(signals.received))
    slots = _slots(config, prepared.reader)
    loader = _loader(config, slots, start, world)
    guard = Guard(config, world, partial(samples_of, slots, config.batch_size), engine.scales)
    saver = Saver(background=config.checkpoint.background)
    skipped = Skipped(prepared.skipped if world.is_main else {})
    if start == 0:
        reporter.sample(0)

    step, received = start, 0
    # A run that was stopped in an evaluation takes it up again first.
    unmeasured = start > 0 and _at(start, config.evaluation.every, config.steps)
    unmeasured = unmeasured and not reporter.evaluate(start)
    with closing(engine), closing(saver), closing(batches(loader, skipped)) as stream:
        timed = reporter.stopwatch.timed(stream)
        while step < config.steps and not (received or unmeasured):
            world.mark(f"step {step + 1}")
            batch = next(timed).to(world.device, training.dtype)
            terms = training.objective.iterate(engine, batch.split(config.engine.accumulate), step)
            training.update_ema(engine)
            step += 1
            terms = guard.watch(step, terms)

            received = world.agree(signals.received)
            logged = _at(step, config.monitor.log_every, config.steps)
            measured = _at(step, config.evaluation.every, config.steps)
            saved = _at(step, config.checkpoint.every, config.steps) or measured or received
            if logged or saved:
                everywhere = Skipped.joined(world.gather(skipped.rows))
                everywhere.check(config.data.max_skipped)
                guard.check()
            if logged:
                reporter.log(step, terms, everywhere, guard.iterations)
            if _at(step, config.monitor.sample_every, config.steps):
                reporter.sample(step)
            if saved:
                state = training.snapshot(engine, keep=world.is_main)
                if state:
                    reporter.monitor.flush()  # a resumed run logs only what comes after this one
                    saver.save(partial(_save, config, step, state, training.facts(everywhere)))
            saver.check()
            if measured:
                saver.wait()  # what is measured is there, whatever happens meanwhile
                unmeasured = bool(received) or not reporter.evaluate(step)
        saver.wait()

    finished = step >= config.steps and not unmeasured
    reporter.end(step, finished, world.agree(signals.received))
    world.wait_for_all()  # a rank that left while rank 0 saves would have the job ended
    return FINISHED if finished else STOPPED


def _save(config: Config, step: int, state: State, facts: dict[str, Any]) -> None:
    checkpoints.save(config.run, step, state, facts)
    keep = config.checkpoint
    checkpoints.remove_superseded(
        config.run,
        step,
        config.evaluation.protocol,
        keep_last=keep.keep_last,
        keep_every=keep.keep_every,
    )
