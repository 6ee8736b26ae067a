"""The loop: read what the run needs, build the parts, iterate."""

import copy
import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stargan_dist import checkpoint as checkpoints
from stargan_dist import config as configs
from stargan_dist import monitor, storage
from stargan_dist.checkpoint import Checkpoint
from stargan_dist.config import Config, OptimConfig
from stargan_dist.data.order import generator
from stargan_dist.data.stream import (
    ShardReader,
    Slots,
    check_split,
    load_split,
    training_loader,
)
from stargan_dist.engine import REMEDY, Engine, launched_world_size
from stargan_dist.errors import UserError
from stargan_dist.nets.v2 import build_networks
from stargan_dist.objectives.stargan_v2 import StarGANv2
from stargan_dist.shards.index import Index, read_index
from stargan_dist.translate import AVERAGED, Translator

FINISHED = 0
STOPPED = 75  # EX_TEMPFAIL: a signal came, the state is saved, the same command goes on
GRID_DOMAINS = 8  # a grid shows the first so many


@dataclass(frozen=True)
class Plan:
    """What a run starts from: its data, and the checkpoint it resumes (None: a new run)."""

    index: Index
    resume: Checkpoint | None


def plan(config: Config) -> Plan:
    """Look at everything that can be wrong before any process group starts.

    Raises:
        UserError: world and batch do not fit, shards are missing or too few, the run folder
            cannot be written or belongs to another configuration or data set.
    """
    configs.check_world(config, launched_world_size())
    index = read_index(config.data.shards)
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
    return Plan(index, resume)


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


def build_optimizers(
    networks: Mapping[str, nn.Module], config: OptimConfig
) -> dict[str, torch.optim.Optimizer]:
    return {
        letter: torch.optim.Adam(
            network.parameters(),
            lr=config.lr_mapping if letter == "F" else config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        for letter, network in networks.items()
    }


class Training:
    """The parts of a run that change: networks, their averages, optimizers, the objective."""

    def __init__(self, config: Config, index: Index, device: torch.device) -> None:
        self.config, self.index = config, index
        self.dtype = getattr(torch, config.precision)
        torch_seed = int(generator(config.seed, "networks").integers(2**63))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed)
            built = build_networks(len(index.domains), **configs.to_dict(config)["model"])
        for network in built:
            network.to(device, self.dtype)
        self.objective = StarGANv2(built, config.loss)
        self.networks: dict[str, nn.Module] = built._asdict()
        self.optimizers = build_optimizers(self.networks, config.optim)
        self.ema = {
            letter: copy.deepcopy(self.networks[letter]).requires_grad_(False).eval()
            for letter in AVERAGED
        }
        self._average = get_ema_multi_avg_fn(config.optim.ema)

    @property
    def parts(self) -> dict[str, Any]:
        return {"networks": self.networks, "ema": self.ema, "optimizers": self.optimizers}

    def update_ema(self) -> None:
        for letter, average in self.ema.items():
            current = list(self.networks[letter].parameters())
            self._average(list(average.parameters()), current, None)

    def save(self, step: int) -> None:
        facts = {
            "config": configs.to_dict(self.config),
            "domains": self.index.domains,
            "data": self.index.fingerprint,
        }
        checkpoints.save(self.config.run, step, facts=facts, **self.parts)
        keep = self.config.checkpoint
        checkpoints.remove_superseded(
            self.config.run, keep_last=keep.keep_last, keep_every=keep.keep_every
        )


class Reporter:
    """What rank 0 tells: log lines, grids, files of the run folder. Other ranks keep still."""

    def __init__(self, config: Config, training: Training, engine: Engine, start: int) -> None:
        self.config, self.training, self.engine = config, training, engine
        self.shown = engine.is_main
        self.stopwatch = monitor.Stopwatch()
        if self.shown:
            self._write("config.yaml", configs.to_yaml(config).encode())
            facts = monitor.environment(engine.world_size, engine.device)
            self._write("environment.json", json.dumps(facts, indent=1).encode())
            self.monitor = monitor.Monitor(
                config.run, start, config.steps, config.batch_size, configs.to_yaml(config)
            )
            self.inputs, self.references = self._fixed_images(0), self._fixed_images(1)

    def _write(self, name: str, data: bytes) -> None:
        storage.write_bytes(storage.join(self.config.run, name), data)

    def _fixed_images(self, turn: int) -> Any:
        """The images of every grid: validation images if each domain has some."""
        index, config = self.training.index, self.config
        count = config.monitor.sources
        split = "val" if all(sum(c) for c in index.counts("val")) else "train"
        return load_split(
            config.data.shards, split, config.model.image_size,
            first=turn * count, per_domain=count, domains=GRID_DOMAINS,
        )  # fmt: skip

    def log(self, step: int, terms: Mapping[str, torch.Tensor]) -> None:
        """Read the losses of a step from the device, averaged over the ranks."""
        losses = self.engine.mean(terms)
        seconds, wait_share = self.stopwatch.lap()
        if self.shown:
            self.monitor.log(
                step,
                losses,
                lambda_ds=self.training.objective.lambda_ds(step - 1),
                seconds=seconds,
                data_wait_share=wait_share,
                memory=monitor.memory_bytes(self.engine.device),
            )

    def sample(self, step: int) -> None:
        """Grids of translations by the averaged networks, to files and TensorBoard."""
        if not self.shown:
            return
        config = self.config
        translator = Translator(self.training.ema, config, self.training.index.domains, step)
        grids = {
            "latent": monitor.latent_grid(
                translator, self.inputs, config.monitor.latents, config.seed
            ),
            "reference": monitor.reference_grid(translator, self.inputs, self.references),
        }
        for name, picture in grids.items():
            self._write(f"samples/{name}_{step:08d}.png", monitor.to_png(picture))
        self.monitor.show(grids, step)

    def end(self, step: int, received: int) -> None:
        """Say how the run ended, to a person and (status.json) to a script."""
        if not self.shown:
            return
        self.monitor.close()
        status = "finished" if step == self.config.steps else "stopped"
        row = {"status": status, "step": step, "signal": received or None}
        self._write("status.json", json.dumps(row).encode())
        cause = f" by {signal.Signals(received).name}" if received else ""
        print(f"{status}{cause} at step {step}, saved in {self.config.run}", flush=True)
        if status == "stopped":
            print("the same command goes on from there", flush=True)


def train(config: Config) -> int:
    """Train a run, or go on with it. Returns FINISHED or STOPPED, the exit code.

    Raises:
        UserError: for anything a person has to mend.
    """
    prepared = plan(config)
    with Signals() as signals, _alone(config.run):
        engine = Engine()
        try:
            return _fit(config, prepared, engine, signals)
        finally:
            engine.close()


@contextmanager
def _alone(run: str) -> Iterator[None]:
    """Rank 0 holds the run, so that processes that do not know of each other cannot share it."""
    if int(os.environ.get("RANK", "0")):
        yield
        return
    with storage.locked(run, f"another process is training {run}; {REMEDY}"):
        yield


def _fit(config: Config, prepared: Plan, engine: Engine, signals: Signals) -> int:
    training = Training(config, prepared.index, engine.device)
    start = prepared.resume.step if prepared.resume else 0
    if prepared.resume:
        checkpoints.restore(prepared.resume, **training.parts)
    if engine.is_main:
        storage.remove_leftovers(storage.join(config.run, checkpoints.FOLDER))
    engine.prepare(training.objective.sides, training.networks, training.optimizers)
    reporter = Reporter(config, training, engine, start)
    reader = ShardReader(config.data.shards, prepared.index, "train")
    loader = training_loader(
        Slots(reader, config.seed, config.model.image_size, config.model.latent_dim),
        range(start, config.steps),
        config.batch_size,
        rank=engine.rank,
        world_size=engine.world_size,
        workers=config.data.workers,
        pin_memory=engine.device.type == "cuda",
    )
    if start == 0:
        reporter.sample(0)

    step, received = start, 0
    for batch in reporter.stopwatch.timed(loader):
        terms = training.objective.iterate(engine, batch.to(engine.device, training.dtype), step)
        training.update_ema()
        step += 1

        last = step == config.steps
        received = engine.agree(signals.received)
        if step % config.monitor.log_every == 0 or last:
            reporter.log(step, terms)
        if config.monitor.sample_every and (step % config.monitor.sample_every == 0 or last):
            reporter.sample(step)
        if (step % config.checkpoint.every == 0 or last or received) and engine.is_main:
            reporter.monitor.flush()  # a resumed run logs only what comes after this checkpoint
            training.save(step)
        if received:
            break

    reporter.end(step, received)
    engine.wait_for_all()  # a rank that left while rank 0 saves would have the job ended
    return FINISHED if step == config.steps else STOPPED
