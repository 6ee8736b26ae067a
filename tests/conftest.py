"""Fixtures: a small dataset, servers, and real training processes."""

import hashlib
import io
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import fsspec
import pytest
import torch
from filelock import FileLock

from stargan_dist import storage
from stargan_dist.config import StorageConfig
from stargan_dist.data import demo
from stargan_dist.shards.build import build
from tests.helpers.servers import http_server, s3_server

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "configs" / "smoke.yaml"
# Timeout for events that usually take seconds, and longer on a busy machine. It is shorter than the
# timeout of a test (setup.cfg), so that the test reports what did not happen.
PATIENCE_SECONDS = 480

# Tests compare bits between this process and the processes they start: one thread in each.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Credentials for the S3 server of the tests, and no requests to the metadata service of a cloud.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}
torch.set_num_threads(1)


def digest(folder) -> dict[str, str]:
    """Return the contents of a folder: path -> hash of the file."""
    files = (f for f in Path(folder).rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="session")
def animals(tmp_path_factory) -> Path:
    """Folders of drawn animals, 12 images of each species."""
    dest = tmp_path_factory.mktemp("animals") / "animals"
    demo.write_dataset(dest, count=12, size=40, seed=0)
    return dest / "images"


@pytest.fixture(scope="session")
def shards(animals, tmp_path_factory) -> str:
    """Shards of the animals: several per domain, a quarter of the images for validation."""
    dest = str(tmp_path_factory.mktemp("shards") / "set")
    build(str(animals), dest, val_fraction=0.25, shard_images=4)
    return dest


@pytest.fixture(autouse=True)
def clean_access():
    """Reset the storage configuration after each test."""
    yield
    fsspec.config.conf.clear()
    storage.configure(StorageConfig())
    logger = logging.getLogger("stargan_dist")
    logger.handlers, logger.propagate = [], True


# Before any fixture trains in this process: a training that has ended ignores signals.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
HANDLERS = {number: signal.getsignal(number) for number in STOP_SIGNALS}


@pytest.fixture(autouse=True)
def clean_signals():
    """Restore the handlers of signals before each test, as fixtures train as well, and after it."""
    restore_signals()
    yield
    restore_signals()


def restore_signals():
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def s3_address():
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(s3_address) -> str:
    """An empty bucket of an S3 server, as a URL that this process can open."""
    storage.configure(StorageConfig(options={"s3": {"endpoint_url": s3_address}}))
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture
def http(tmp_path):
    """An HTTP server for the folder tmp_path / "served"."""
    (tmp_path / "served").mkdir()
    with http_server(tmp_path / "served") as server:
        yield server


def launch(processes: int) -> list[str]:
    """Return the first words of a command that starts a number of processes."""
    if processes == 1:
        return [sys.executable]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    return [*launcher, "--num_processes", str(processes), "--main_process_port", "0"]


def here(module: str, *args: object, code: int = 0, **env: str) -> subprocess.CompletedProcess:
    """Run `python -m stargan_dist.MODULE …` in this process and check the exit code.

    A process of its own would take seconds to import everything. Commands that start further
    processes need one.
    """
    out, err = io.StringIO(), io.StringIO()
    argv = [module, *map(str, args)]
    with (
        mock.patch.dict(os.environ, env),
        mock.patch.object(sys, "argv", argv),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_module(f"stargan_dist.{module}", run_name="__main__", alter_sys=True)
    assert (ended.value.code or 0) == code, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


@dataclass
class Trainer:
    """Start `stargan_dist.train` with the smoke configuration, as a user would."""

    shards: str

    def command(self, run: Path | str, *args: str, processes: int = 1, driver: str = "") -> list:
        launcher = launch(processes)
        program = [driver] if driver else ["-m", "stargan_dist.train"]
        return [*launcher, *program, *self.options(run), *args]

    def options(self, run: Path | str) -> list[str]:
        return ["--config", str(SMOKE), "--run", str(run), "--data.shards", self.shards]

    def start(self, run, *args, processes=1, driver="", **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(run, *args, processes=processes, driver=driver),
            cwd=ROOT,
            env=os.environ | env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __call__(self, run, *args, code: int = 0, **kwargs) -> subprocess.CompletedProcess:
        """Run the command to its end and check the exit code."""
        process = self.start(run, *args, **kwargs)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == code, out + err
        return subprocess.CompletedProcess(process.args, code, out, err)

    def here(self, run, *args, code: int = 0, **env: str) -> subprocess.CompletedProcess:
        """Train in this process, as the command does, without the seconds of its imports."""
        return here("train", *self.options(run), *args, code=code, **env)


@pytest.fixture(scope="session")
def train(shards) -> Trainer:
    return Trainer(shards)


def shared(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that one worker of xdist makes for all of them. Tests do not change it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, complete = base / name, base / f"{name}.complete"
    with FileLock(base / f"{name}.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            complete.touch()
    return folder


@pytest.fixture(scope="session")
def finished_run(train, tmp_path_factory) -> Path:
    """An uninterrupted smoke run."""
    return shared(tmp_path_factory, "finished", train)


@pytest.fixture(scope="session")
def run_of_two(train, tmp_path_factory) -> Path:
    """An uninterrupted smoke run by two processes."""
    return shared(tmp_path_factory, "of_two", partial(train, processes=2))


PAIR_OPTIONS = ("--recipe", "cyclegan", "--steps", "2", "--monitor.sample_every", "0")


@pytest.fixture(scope="session")
def pair_runs(train, tmp_path_factory) -> Path:
    """A set of the CycleGANs of all pairs of species, trained by their numbers."""

    def make(folder: Path) -> None:
        for number in range(3):
            here("pairs", "--index", number, *train.options(folder), *PAIR_OPTIONS)

    return shared(tmp_path_factory, "pair_runs", make)
