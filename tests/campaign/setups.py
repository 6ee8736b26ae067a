"""Configurations of tries, and the unbroken runs that tries are compared with."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock
from safetensors.torch import load
from torch import Tensor

from stargan_dist.data import demo
from stargan_dist.shards.build import build
from tests.campaign.programs import MARKER, ROOT, Program
from tests.campaign.servers import Server

STEPS, SAVE_EVERY, HALFWAY = 10, 2, 9
# A bound for whatever ends by itself: minutes even on a busy machine.
BOUND_SECONDS = 300.0
TINY = f"""
run: ""
steps: {STEPS}
batch_size: 4
seed: 7
model: {{image_size: 32, base_width: 2, max_width: 4, latent_dim: 4, style_dim: 4, mapping_dim: 4}}
loss: {{ds_iter: {STEPS}}}
checkpoint: {{every: {SAVE_EVERY}}}
monitor: {{log_every: 1, sample_every: 4, sources: 1, latents: 1}}
"""
DEEPSPEED = ("--engine.name", "deepspeed", "--engine.zero_stage")
# Engine and processes, which may change the last bits: each has an unbroken run of its own.
ENGINES: dict[str, tuple[int, tuple[str, ...]]] = {
    "one": (1, ()),
    "ddp": (2, ()),
    "zero1": (2, (*DEEPSPEED, "1")),
    "zero2": (2, (*DEEPSPEED, "2")),
    "zero3": (2, (*DEEPSPEED, "3", "--schedule", "summed")),
}
# Values of each field and their weights.
CHOICES: dict[str, dict[Any, float]] = {
    "engine": {"one": 14, "ddp": 3, "zero1": 1, "zero2": 1, "zero3": 1},
    "run": {"local": 3, "s3": 1},
    "shards": {"local": 2, "http": 1, "s3": 1},
    "cache": {False: 1, True: 1},
    "workers": {0: 1, 2: 1},
    "start_method": {"fork": 3, "spawn": 1, "forkserver": 1},
    "launcher": {"accelerate": 2, "torchrun": 1},
    "fresh": {False: 9, True: 1},
}


@dataclass(frozen=True)
class Setup:
    """Where a try's run and shards are, and which processes train it. See CHOICES."""

    engine: str = "one"
    run: str = "local"
    shards: str = "local"
    cache: bool = False
    workers: int = 0
    start_method: str = "fork"
    launcher: str = "accelerate"
    fresh: bool = False

    @property
    def processes(self) -> int:
        return ENGINES[self.engine][0]

    @property
    def remote(self) -> set[str]:
        """The servers that it needs."""
        return {self.run, self.shards} - {"local"}

    def __str__(self) -> str:
        """Show the fields that differ from the defaults."""
        idle = {"launcher"} if self.processes == 1 else set()
        idle |= set() if self.workers else {"start_method"}
        shown = {k: v for k, v in asdict(self).items() if v != getattr(Setup, k) and k not in idle}
        return " ".join(f"{k}={v}" for k, v in {"engine": self.engine, **shown}.items())


def draw_setup(rng: random.Random, where: Mapping[str, Sequence[Any]]) -> Setup:
    """Draw a setup whose fields have one of the values that `where` allows them."""
    values: dict[str, Any] = {}
    for field in fields(Setup):
        allowed = where.get(field.name, list(CHOICES[field.name]))
        weights = {v: w for v, w in CHOICES[field.name].items() if v in allowed}
        values[field.name] = rng.choices(list(weights), list(weights.values()))[0]
    return Setup(**values)


def launcher_words(setup: Setup) -> list[str]:
    """Return the words before `-m stargan_dist.train` in a command without `python`."""
    if setup.processes == 1:
        return []
    count = str(setup.processes)
    if setup.launcher == "torchrun":
        address = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
        return ["-m", "torch.distributed.run", *address, "--nproc-per-node", count]
    plain = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    words = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", count]
    return [*words, *plain, "--main_process_port", "0"]


class Place:
    """The folder of a try: the run, its shards and cache, and the servers before them.

    Args:
        shards: folder of the shards, which is not changed.
    """

    def __init__(self, folder: Path, setup: Setup, shards: Path) -> None:
        self.folder, self.setup, self.shards = folder, setup, shards
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "tiny.yaml"
        self.config.write_text(TINY)
        self.run_folder = folder / "run"
        self.cache = folder / "cache"
        self.servers = {kind: self._serve(kind) for kind in sorted(setup.remote)}
        self.options: tuple[str, ...] = ()
        self.driver = ""
        self.env: dict[str, str] = {}
        self.programs: list[Program] = []
        if "s3" in setup.remote:
            self._fill_bucket()

    def _serve(self, kind: str) -> Server:
        return Server(self.shards if kind == "http" else None)

    @property
    def run(self) -> str:
        return "s3://bucket/run" if self.setup.run == "s3" else str(self.run_folder)

    def store(self) -> Any:
        """Return the S3 store, past the relay that may be away."""
        return fsspec.filesystem("s3", endpoint_url=self.servers["s3"].direct)

    def _fill_bucket(self) -> None:
        self.store().mkdir("bucket")
        if self.setup.shards == "s3":
            self.store().put(f"{self.shards}/", "bucket/set/", recursive=True)

    def _shards_url(self) -> str:
        urls = {"local": str(self.shards), "s3": "s3://bucket/set"}
        return urls.get(self.setup.shards) or self.servers["http"].url

    def _program(self) -> list[str]:
        """Return the training's program. torchrun must be told where its own options end."""
        end = ["--"] if self.setup.launcher == "torchrun" and self.setup.processes > 1 else []
        return [*end, self.driver] if self.driver else ["-m", *end, "stargan_dist.train"]

    def command(self) -> list[str]:
        """Return the words of the training's command after `python`."""
        setup = self.setup
        cache = ("--data.cache", str(self.cache)) if setup.cache else ()
        return [
            *(*launcher_words(setup), *self._program(), "--config", str(self.config)),
            *("--run", self.run, "--data.shards", self._shards_url(), *cache),
            *("--data.workers", str(setup.workers), "--data.start_method", setup.start_method),
            *(*ENGINES[setup.engine][1], *self.options),
        ]

    def start(self) -> Program:
        """Start the training, or the same command again."""
        marker = f"{self.folder}"
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        env = {MARKER: marker, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), **self.env}
        if "s3" in self.servers:
            env["AWS_ENDPOINT_URL"] = self.servers["s3"].url
        output = self.folder / f"output-{len(self.programs)}.txt"
        program = Program(self.command(), env, output, fresh=self.setup.fresh)
        self.programs.append(program)
        return program

    def close(self) -> None:
        for program in self.programs:
            program.end()
        for server in self.servers.values():
            server.close()

    # What a run holds.

    def names(self) -> list[str]:
        """Return the paths of all files of the run."""
        if self.setup.run == "s3":
            return [name.removeprefix("bucket/run/") for name in self.store().find("bucket/run")]
        return [str(p.relative_to(self.run_folder)) for p in self.run_folder.rglob("*")]

    def read(self, name: str) -> bytes:
        """Read a file of the run. Raises FileNotFoundError."""
        if self.setup.run == "s3":
            store = self.store()
            store.invalidate_cache()
            return bytes(store.cat_file(f"bucket/run/{name}"))
        return (self.run_folder / name).read_bytes()

    def saved_step(self) -> int:
        """Return the step that `latest` names, 0 without one."""
        try:
            return int(self.read("checkpoints/latest").decode().strip().removeprefix("step_"))
        except (OSError, ValueError):
            return 0

    def contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all tensors of the last step's checkpoint and what decides of its manifest."""
        folder = f"checkpoints/step_{STEPS:08d}"
        tensors = {
            f"{kind}/{name}": tensor
            for kind in ("networks", "ema", "optimizers")
            for name, tensor in load(self.read(f"{folder}/{kind}.safetensors")).items()
        }
        return tensors, deciding_fields(json.loads(self.read(f"{folder}/manifest.json")))


# Sections and fields of a configuration that do not change the result (config.FREE_FIELDS).
FREE = ("run", "data", "engine", "storage", "checkpoint", "monitor", "evaluation")


def deciding_fields(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what two equal runs have in common in their manifests."""
    names = ("step", "domains", "labels", "data", "skipped", "scales", "nonfinite")
    config = {k: v for k, v in manifest["config"].items() if k not in FREE}
    return {"config": config, **{name: manifest[name] for name in names}}


class References:
    """Unbroken runs by engine, trained when they are first needed and shared by all tries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"

    def prepare(self) -> None:
        """Draw the images and build the shards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        demo.write_dataset(self.folder / "animals", count=8, size=32, seed=0)
        images = str(self.folder / "animals" / "images")
        build(images, str(self.shards), val_fraction=0.25, shard_images=3)

    def unbroken(self, engine: str) -> Place:
        """Return the unbroken run of an engine."""
        return self._train(engine, STEPS)

    def halfway(self, *, cached: bool) -> Place:
        """Return a run of one process that has saved at HALFWAY and not gone on."""
        return self._train("one", HALFWAY, cached)

    def _train(self, engine: str, steps: int, cached: bool = False) -> Place:
        folder = self.folder / f"{engine}-{steps}{'-cached' * cached}"
        place = Place(folder, Setup(engine, cache=cached), self.shards)
        place.options = ("--steps", str(steps))
        done = folder / "done"
        with FileLock(folder / "training.lock"):
            if not done.exists():
                program = place.start()
                assert program.wait(BOUND_SECONDS) and program.code == 0, program.text()
                done.touch()
        return place
