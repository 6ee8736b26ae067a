"""Fixtures: a small data set, and real training processes on it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from stargan_dist.data import demo
from stargan_dist.shards.build import build

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "configs" / "smoke.yaml"

# Bits are compared between this process and those that tests start: one thread in each.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def animals(tmp_path_factory) -> Path:
    """Folders of drawn animals, 12 of each species."""
    dest = tmp_path_factory.mktemp("animals") / "animals"
    demo.write_dataset(dest, count=12, size=40, seed=0)
    return dest / "images"


@pytest.fixture(scope="session")
def shards(animals, tmp_path_factory) -> str:
    """Shards of them: several a domain, a quarter of the images for validation."""
    dest = str(tmp_path_factory.mktemp("shards") / "set")
    build(str(animals), dest, val_fraction=0.25, shard_bytes=10_000)
    return dest


@dataclass
class Trainer:
    """Starts `stargan_dist.train` with the smoke configuration, as a user would."""

    shards: str

    def command(self, run: Path | str, *args: str, processes: int = 1, driver: str = "") -> list:
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "accelerate.commands.launch", "--multi_gpu"]
            launcher += ["--num_processes", str(processes), "--main_process_port", "0"]
        program = [driver] if driver else ["-m", "stargan_dist.train"]
        options = ["--config", str(SMOKE), "--run", str(run), "--data.shards", self.shards]
        return [*launcher, *program, *options, *args]

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
        """Run to the end and check the exit code."""
        process = self.start(run, *args, **kwargs)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, out + err
        return subprocess.CompletedProcess(process.args, code, out, err)


@pytest.fixture(scope="session")
def train(shards) -> Trainer:
    return Trainer(shards)


@pytest.fixture(scope="session")
def finished_run(train, tmp_path_factory) -> Path:
    """A smoke run that went through without a break."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(run)
    return run
