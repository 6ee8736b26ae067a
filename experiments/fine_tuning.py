"""Measure how much sooner a training with a new domain is good if it starts from a trained model.

    python experiments/fine_tuning.py [--seeds 1 2 3] [--out build/fine_tuning]

For each seed: train the demo on cats and dogs; then on cats, dogs and rabbits, once from random
weights and once with `--init`. Every `EVERY` steps the judge of the demo measures the share of the
translations into the new species, and into any species, that it reads as the target. The table
gives the first step at which that share is `GOAL`. The last line is one JSON object.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from demo_quality import Probes, Truth, judge_pair, prepare
from launching import CONFIGS, train

from stargan_dist.console.tables import format_table
from stargan_dist.data import demo
from stargan_dist.errors import run_command
from stargan_dist.inference.model import TrainedModel
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.shards.build import build

OLD, NEW = ("cat", "dog"), "rabbit"
COUNT, SIZE = 400, 40  # images of a species, and their pixels
STEPS, EVERY = 820, 41
GOAL = 0.95


def make_shards(out: Path) -> tuple[str, str]:
    """Draw the animals; return shards of the old species, and of all."""
    if not (out / "animals").exists():
        demo.write_dataset(out / "animals", COUNT, SIZE, seed=0)
    if not (out / "two").exists():
        for species in OLD:
            shutil.copytree(out / "animals" / "images" / species, out / "two" / species)
    for images, shards in (("two", "shards_of_two"), ("animals/images", "shards")):
        if not (out / shards).exists():
            build(str(out / images), str(out / shards), val_fraction=0.2)
    return str(out / "shards_of_two"), str(out / "shards")


def options(run: Path, seed: int, shards: str, *init: str) -> list[str]:
    """Return the command line of a training: the demo's, with checkpoints to judge."""
    settings = {
        "run": run, "seed": seed, "steps": STEPS, "loss.ds_iter": STEPS, "schedule": "published",
        "data.shards": shards, "evaluation.every": 0, "monitor.sample_every": 0,
        "checkpoint.every": EVERY, "checkpoint.keep_every": EVERY,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["--config", str(CONFIGS / "demo.yaml"), *words, *init]


def accuracies(run: Path, probes: Probes, val: Truth) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the judge's accuracies at each checkpoint of a run."""
    pairs = [(s, t) for t in range(len(val.domains)) for s in range(len(val.domains)) if s != t]
    for step in checkpoints.list_steps(str(run)):
        model = TrainedModel.load(str(run), str(step))
        torch.manual_seed(0)  # the same sources and latents for all steps
        found = {pair: judge_pair(model, probes, val, *pair) for pair in pairs}
        shares = {
            pair: (m["domain_accuracy_latent"] + m["domain_accuracy_reference"]) / 2
            for pair, m in found.items()
        }
        new = val.domains.index(NEW)
        yield (
            step,
            {
                "new": statistics.fmean(share for (_, t), share in shares.items() if t == new),
                "all": statistics.fmean(shares.values()),
            },
        )


def first_steps(run: Path, probes: Probes, val: Truth) -> dict[str, int | None]:
    """Return the first step at which each accuracy is `GOAL`, and write the curve to the run."""
    curve = dict(accuracies(run, probes, val))
    (run / "accuracy.json").write_text(json.dumps(curve, indent=1))
    return {
        name: next((step for step, shares in curve.items() if shares[name] >= GOAL), None)
        for name in ("new", "all")
    }


def measure(seed: int, out: Path, processes: int) -> dict[str, Any]:
    """Train and judge one seed. What was trained before is resumed."""
    two, three = make_shards(out)
    runs = {name: out / f"{name}_{seed}" for name in ("old", "scratch", "tuned")}
    train(options(runs["old"], seed, two), processes)
    train(options(runs["scratch"], seed, three), processes)
    train(options(runs["tuned"], seed, three, "--init", str(runs["old"])), processes)
    torch.manual_seed(0)
    probes, val = prepare(three, TrainedModel.load(str(runs["old"])).config.model.image_size,
                          out / "animals")  # fmt: skip
    return {name: first_steps(runs[name], probes, val) for name in ("scratch", "tuned")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("build/fine_tuning"))
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    results = {seed: measure(seed, args.out, args.processes) for seed in args.seeds}
    rows = [["seed", "goal", "from random weights", "from the model of two species", "ratio"]]
    for seed, found in results.items():
        for name in ("new", "all"):
            scratch, tuned = found["scratch"][name], found["tuned"][name]
            ratio = f"{tuned / scratch:.2f}" if scratch and tuned else ""
            rows.append([str(seed), name, str(scratch), str(tuned), ratio])
    print(format_table(rows, left=(0, 1)))
    print(json.dumps({str(seed): found for seed, found in results.items()}))


if __name__ == "__main__":
    run_command(main)
