"""Trainings on drawn animals, as a user starts them, that several benchmarks time."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from stargan_dist.data import demo
from stargan_dist.shards.build import build


def words(options: dict[str, object]) -> list[str]:
    """Return options of a command line."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def draw_shards(folder: Path, images_per_species: int, size: int) -> Path:
    """Draw animals and build their shards; returns the folder of the shards."""
    demo.write_dataset(folder / "animals", images_per_species, size, seed=0)
    build(str(folder / "animals" / "images"), str(folder / "shards"), val_fraction=0.1)
    return folder / "shards"


def train(run: Path, options: Sequence[str]) -> list[dict[str, float]]:
    """Train in a process of its own; returns the scalars of each time that the run logs them."""
    # The run comes last: configuration files in the options name others.
    command = [sys.executable, "-m", "stargan_dist.train", *options, "--run", str(run)]
    subprocess.run(command, check=True)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
