"""The evaluation protocol done literally against ours: same networks, same images, one process.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py [--size 256] [--sources 2] [--processes]

Three domains with `sources` validation images and ten times as many training images each, which
are about the proportions of AFHQ; the paper's networks at full width, in float32, with weights
drawn at random, which does not change the time.

The literal way is that of common code for this paper. For each task it passes each output through
all of G, writes it to a PNG file, compares the 45 pairs of outputs by calls of the `lpips`
package, reads the files back through PIL for Inception, and computes the features of the target's
training images once more. Ours is what `stargan_dist.evaluate` runs, and does the real-against-real
tasks as well. Matrix roots for the Fréchet distance are left out of both: their time does not
depend on the number of images, and would be most of the literal way's for as few as here.

Prints where the time goes, in seconds, and one JSON object: `ratio` of the literal time to ours,
the same with statistics of real images from the cache, the same for all but generation, how far
the outcomes differ (relative to the largest), what generation in bfloat16 adds, and how much
faster two processes of one thread are than one.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.utils import save_image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from baselines import random_weights as weights
from stargan_dist.config import Config, DataConfig, EvaluationConfig, ModelConfig
from stargan_dist.data import demo
from stargan_dist.data.batch import to_unit
from stargan_dist.data.labels import domain_labels
from stargan_dist.data.reader import LoadedSplit, load_split, open_reader
from stargan_dist.distributed.world import World
from stargan_dist.evaluation import evaluator
from stargan_dist.evaluation.metrics.statistics import Statistics, distances
from stargan_dist.evaluation.protocols import MetricSet
from stargan_dist.evaluation.results import Result
from stargan_dist.evaluation.tasks import (
    LATENT,
    OUTPUTS,
    REAL,
    Task,
    draw_latents,
    draw_references,
    tasks,
)
from stargan_dist.inference.translator import Translator
from stargan_dist.objectives import recipes
from stargan_dist.shards.build import build

SEED = 0
Outcome = dict[Task, tuple[float, float]]  # the Fréchet distance and LPIPS


class Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self(name):
                return function(*args, **options)

        return call


def make_data(folder: Path, size: int, sources: int) -> None:
    """Drawn animals as PNG files, and shards of them."""
    demo.write_dataset(folder / "drawn", count=11 * sources, size=size, seed=SEED)
    for domain in sorted((folder / "drawn" / "images").iterdir()):
        for number, file in enumerate(sorted(domain.iterdir())):
            to = folder / "images" / ("val" if number < sources else "train") / domain.name
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
    build(str(folder / "images"), str(folder / "shards"))
    torch.save(weights.paper_inception(), folder / "inception.pth")
    torch.save(weights.alexnet_features(), folder / "alexnet.pth")


def make_config(folder: Path, size: int) -> Config:
    return Config(
        run=str(folder / "run"),
        data=DataConfig(shards=str(folder / "shards"), workers=0),
        model=ModelConfig(image_size=size),
        evaluation=EvaluationConfig(
            inception_weights=str(folder / "inception.pth"),
            alexnet_weights=str(folder / "alexnet.pth"),
        ),
    )


def make_translator(config: Config) -> Translator:
    torch.manual_seed(SEED)
    labels = domain_labels(["cat", "dog", "rabbit"])
    networks = recipes.build_networks(recipes.recipe_of(config), labels, config.model)
    for network in networks.values():
        network.eval().requires_grad_(False)
    return Translator(networks, config, labels, step=0)


# The literal way.

TO_INCEPTION = transforms.Compose(
    [
        transforms.Resize((299, 299)),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


@torch.no_grad()
def literal(translator: Translator, networks: MetricSet, folder: Path, clock: Clock) -> Outcome:
    """Every task, one after the other."""
    size = translator.config.model.image_size
    reader = open_reader(translator.config.data, "val")
    val = load_split(reader, size)
    cast(nn.Module, networks.features.network).to(memory_format=torch.contiguous_format)
    return {
        task: literal_task(translator, networks, task, val, folder, clock)
        for task in tasks(len(val.domains))
        if task.guide != REAL
    }


def of(split: LoadedSplit, label: int) -> Tensor:
    """The images of one domain."""
    return split.images[split.labels == label]


def literal_task(
    translator: Translator,
    networks: MetricSet,
    task: Task,
    val: LoadedSplit,
    folder: Path,
    clock: Clock,
) -> tuple[float, float]:
    files, compared = [], []
    for number, image in enumerate(of(val, task.source)):
        group = []
        for i in range(OUTPUTS):
            with clock("generation"):
                output = literal_output(translator, task, image, of(val, task.target), number, i)
            with clock("png files"):
                files.append(folder / "fakes" / f"{'_'.join(map(str, task))}_{number}_{i}.png")
                files[-1].parent.mkdir(exist_ok=True)
                save_image((output + 1) / 2, files[-1])
            group.append(output)
        with clock("lpips"):
            package = cast(nn.Module, networks.diversity.package)
            pairs = [package(a, b) for a, b in combinations(group, 2)]
            compared.append(torch.stack(pairs).mean())
    with clock("features of fakes"):
        fakes = literal_features(networks, files)
    with clock("features of real images"):
        real_folder = folder / "images" / "train" / val.domains[task.target]
        real = literal_features(networks, sorted(real_folder.iterdir()))
    with clock("roots (not counted)"):
        distance = literal_distance(real, fakes)
    return distance, float(torch.stack(compared).mean())


def literal_output(
    translator: Translator, task: Task, image: Tensor, references: Tensor, number: int, i: int
) -> Tensor:
    y = torch.tensor([task.target])
    if task.guide == LATENT:
        drawn = draw_latents(task, number, translator.config.model.latent_dim, SEED)
        style = translator.networks["F"](torch.from_numpy(drawn[i, None]).float(), y)
    else:
        picked = draw_references(task, number, len(references), SEED)[i]
        style = translator.networks["E"](to_unit(references[picked, None]), y)
    return translator.G(to_unit(image[None]), style)


def literal_features(networks: MetricSet, files: list[Path]) -> np.ndarray:
    rows = []
    for first in range(0, len(files), OUTPUTS):
        images = [Image.open(file).convert("RGB") for file in files[first : first + OUTPUTS]]
        batch = torch.stack([TO_INCEPTION(image) for image in images])
        rows.append(cast(nn.Module, networks.features.network)(batch))
    return torch.cat(rows).double().numpy()


def literal_distance(a: np.ndarray, b: np.ndarray) -> float:
    """By the singular values of the centred features' product: scipy's root of a product of
    covariances is inexact where these are singular, as they are for so few images."""
    x, y = a - a.mean(0), b - b.mean(0)
    root = np.linalg.norm(x @ y.T, "nuc") / np.sqrt((len(a) - 1) * (len(b) - 1))
    traces = np.square(x).sum() / (len(a) - 1) + np.square(y).sum() / (len(b) - 1)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + traces - 2 * root)


# Ours.


def ours(config: Config, translator: Translator, world: World, clock: Clock) -> Outcome:
    """An evaluation without its matrix roots, which follow afterwards."""
    owed: list[tuple[Statistics, Statistics]] = []

    def later(real: Statistics, other: Statistics) -> tuple[float, float]:
        owed.append((real, other))
        return 0.0, 0.0

    measuring = evaluator.Evaluator(config, world)
    networks = measuring.collector.metrics
    networks.features.forward = clock.timed("features", networks.features.forward)
    networks.diversity.forward = clock.timed("lpips", networks.diversity.forward)
    translate = clock.timed("generation", Translator.translate)
    with (
        mock.patch.object(evaluator, "distances", later),
        mock.patch.object(Translator, "translate", translate),
        clock("all"),
    ):
        result = measuring.evaluate(translator, SEED)
    shutil.rmtree(Path(config.run) / "evaluation", ignore_errors=True)
    return _outcome(result, owed, clock) if world.is_main else {}


def _outcome(result: Result, owed: list[tuple[Statistics, Statistics]], clock: Clock) -> Outcome:
    lpips = result["metrics"][2]
    label = result["domains"].index
    compared = {
        Task(row["guide"], label(row["source"]), label(row["target"])): row.get(lpips)
        for row in result["rows"]
    }
    with clock("roots (not counted)"):
        found = {
            task: (distances(*pair)[0], compared[task])
            for task, pair in zip(tasks(len(result["domains"])), owed, strict=True)
        }
    return {task: pair for task, pair in found.items() if task.guide != REAL}


def seconds_of(clock: Clock) -> float:
    """All but the roots."""
    return sum(s for name, s in clock.seconds.items() if "not counted" not in name)


def difference(a: Outcome, b: Outcome, number: int) -> float:
    """The largest difference of a number of the tasks, relative to its largest value."""
    largest = max(abs(pair[number]) for pair in a.values())
    return max(abs(a[task][number] - b[task][number]) for task in a) / largest


def map_in_processes(folder: Path, size: int, count: int) -> float:
    """Seconds of an evaluation by so many processes of one thread."""
    launcher = [sys.executable]
    if count > 1:
        launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
        launcher += ["--num_processes", str(count)]
    options = ["--worker", str(folder), "--size", str(size)]
    output = subprocess.run(
        [*launcher, __file__, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return float(output.split()[-1])


def work(folder: Path, size: int) -> None:
    """One of the processes of `in_processes`."""
    config, world, clock = make_config(folder, size), World(), Clock()
    config = dataclasses.replace(config, run=str(folder / "processes"))
    ours(config, make_translator(config), world, clock)
    if world.is_main:
        print(clock.seconds["all"])
    world.close()


def measure_all(folder: Path, size: int) -> dict[str, float]:
    config, world = make_config(folder, size), World()
    translator = make_translator(config)
    clocks = {name: Clock() for name in ("ours", "ours, cached", "ours, bfloat16", "literal")}
    outcome = ours(config, translator, world, clocks["ours"])
    ours(config, translator, world, clocks["ours, cached"])
    lowered = dataclasses.replace(config.evaluation, precision="bfloat16")
    fast = dataclasses.replace(config, evaluation=lowered)
    ours(fast, translator, world, clocks["ours, bfloat16"])
    translator.bfloat16 = False
    networks = evaluator.Evaluator(config, world).collector.metrics
    expected = literal(translator, networks, folder, clocks["literal"])
    world.close()

    seconds = {name: clock.seconds.pop("all", seconds_of(clock)) for name, clock in clocks.items()}
    for name, clock in clocks.items():
        parts = {part: round(spent, 1) for part, spent in clock.seconds.items()}
        print(f"{name:<16} {seconds[name]:7.1f}  {parts}")
    rest = {name: seconds[name] - clock.seconds["generation"] for name, clock in clocks.items()}
    return {
        "literal_s": seconds["literal"],
        "ours_s": seconds["ours"],
        "ratio": seconds["literal"] / seconds["ours"],
        "ratio_with_cached_real": seconds["literal"] / seconds["ours, cached"],
        "metrics_only_ratio": rest["literal"] / rest["ours"],
        "fid_difference": difference(expected, outcome, 0),
        "lpips_difference": difference(expected, outcome, 1),
        "bfloat16_ratio": seconds["ours, cached"] / seconds["ours, bfloat16"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--sources", type=int, default=2, help="validation images of each domain")
    parser.add_argument("--processes", action="store_true", help="compare two with one as well")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(Path(args.worker), args.size)
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), args.size, args.sources)
        found = measure_all(Path(folder), args.size)
        if args.processes:
            one, two = (map_in_processes(Path(folder), args.size, count) for count in (1, 2))
            found["two_processes_ratio"] = one / two
    rounded = {name: float(f"{value:.3g}") for name, value in found.items()}
    print(json.dumps({"size": args.size, "sources": args.sources, **rounded}))


if __name__ == "__main__":
    main()
