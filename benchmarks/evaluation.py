"""Time the paper's evaluation: a literal implementation against the project's, in one process.

    OMP_NUM_THREADS=2 python benchmarks/evaluation.py [--size 256] [--sources 2] [--processes]

Both use the same networks and images: three domains with `--sources` validation images and ten
times as many training images each, about the proportions of AFHQ. The networks are the paper's at
full width, in float32, with random weights, which do not change the time.

The literal implementation does what common code for this paper does. For each task it passes each
output through all of G, writes it to a PNG file, compares the 45 pairs of outputs by calls of the
`lpips` package, reads the files back through PIL for Inception, and computes the features of the
target's training images once more. The project's is what `stargan_dist.evaluate` runs; it does the
real-against-real tasks as well. Neither time includes the matrix roots of the Fréchet distance:
they do not depend on the number of images, and with so few would take most of the literal time.

Prints the seconds of each part, and one JSON object: `ratio` of the literal time to the project's,
the same with statistics of real images from the cache, the same without generation, the largest
differences of the metrics (relative to the largest value), the speed-up by generation in bfloat16,
and with `--processes` the speed-up by two processes of one thread over one.
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
from stargan_dist.console.progress import progress_bar
from stargan_dist.data import demo
from stargan_dist.data.batch import to_unit
from stargan_dist.data.labels import domain_labels
from stargan_dist.data.reader import open_reader
from stargan_dist.data.split import LoadedSplit, load_split
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
from stargan_dist.inference.model import TrainedModel
from stargan_dist.objectives import recipes
from stargan_dist.shards.build import build

SEED = 0
Outcome = dict[Task, tuple[float, float]]  # Fréchet distance and LPIPS


class Clock:
    """Seconds spent in each named part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added to a part."""

        def call(*args: Any, **options: Any) -> Any:
            with self(name):
                return function(*args, **options)

        return call


def make_data(folder: Path, size: int, sources: int) -> None:
    """Write drawn animals as PNG files, shards of them, and files of random weights."""
    demo.write_dataset(folder / "drawn", count=11 * sources, size=size, seed=SEED)
    for domain in sorted((folder / "drawn" / "images").iterdir()):
        for number, file in enumerate(sorted(domain.iterdir())):
            split = "val" if number < sources else "train"
            split_folder = folder / "images" / split / domain.name
            split_folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, split_folder)
    build(str(folder / "images"), str(folder / "shards"))
    torch.save(weights.paper_inception(), folder / "inception.pth")
    torch.save(weights.alexnet_features(), folder / "alexnet.pth")


def make_config(folder: Path, size: int) -> Config:
    return Config(
        run=str(folder / "run"),
        data=DataConfig(shards=str(folder / "shards"), workers=0),
        model=ModelConfig(image_size=cast(Any, size)),
        evaluation=EvaluationConfig(
            inception_weights=str(folder / "inception.pth"),
            alexnet_weights=str(folder / "alexnet.pth"),
        ),
    )


def make_translator(config: Config) -> TrainedModel:
    torch.manual_seed(SEED)
    labels = domain_labels(["cat", "dog", "rabbit"])
    spec = recipes.resolve(config)
    networks = spec.recipe.build_networks(labels, config.model)
    for network in networks.values():
        network.eval().requires_grad_(False)
    return TrainedModel(networks, spec, labels, step=0)


# The literal implementation.

TO_INCEPTION = transforms.Compose(
    [
        transforms.Resize((299, 299)),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


@torch.no_grad()
def literal(translator: TrainedModel, networks: MetricSet, folder: Path, clock: Clock) -> Outcome:
    """Evaluate every task, one after the other."""
    size = translator.config.model.image_size
    reader = open_reader(translator.config.data, "val")
    val = load_split(reader, size)
    cast(nn.Module, networks.features.network).to(memory_format=torch.contiguous_format)
    outcome = {}
    translations = [task for task in tasks(len(val.domains)) if task.guide != REAL]
    progress = progress_bar(len(translations), "tasks", description="literal evaluation")
    for task in translations:
        outcome[task] = literal_task(translator, networks, task, val, folder, clock)
        progress.update(1)
    progress.close()
    return outcome


def images_of(split: LoadedSplit, label: int) -> Tensor:
    """Return the images of one domain."""
    return split.images[split.labels == label]


def literal_task(
    translator: TrainedModel,
    networks: MetricSet,
    task: Task,
    val: LoadedSplit,
    folder: Path,
    clock: Clock,
) -> tuple[float, float]:
    """Evaluate one task: its Fréchet distance and its LPIPS."""
    files, lpips = [], []
    references = images_of(val, task.target)
    for number, image in enumerate(images_of(val, task.source)):
        group = []
        for i in range(OUTPUTS):
            with clock("generation"):
                output = literal_output(translator, task, image, references, number, i)
            with clock("png files"):
                files.append(folder / "fakes" / f"{'_'.join(map(str, task))}_{number}_{i}.png")
                files[-1].parent.mkdir(exist_ok=True)
                save_image((output + 1) / 2, files[-1])
            group.append(output)
        with clock("lpips"):
            assert networks.diversity is not None
            package = cast(nn.Module, networks.diversity.package)
            pairs = [package(a, b) for a, b in combinations(group, 2)]
            lpips.append(torch.stack(pairs).mean())
    with clock("features of fakes"):
        fakes = literal_features(networks, files)
    with clock("features of real images"):
        real_folder = folder / "images" / "train" / val.domains[task.target]
        real = literal_features(networks, sorted(real_folder.iterdir()))
    with clock("roots (not counted)"):
        distance = literal_distance(real, fakes)
    return distance, float(torch.stack(lpips).mean())


def literal_output(
    translator: TrainedModel, task: Task, image: Tensor, references: Tensor, number: int, i: int
) -> Tensor:
    """Return output number i of a source image."""
    y = torch.tensor([task.target])
    if task.guide == LATENT:
        latents = draw_latents(task, number, translator.config.model.latent_dim, SEED)
        style = translator.networks["F"](torch.from_numpy(latents[i, None]).float(), y)
    else:
        reference = draw_references(task, number, len(references), SEED)[i]
        style = translator.networks["E"](to_unit(references[reference, None]), y)
    return translator.G(to_unit(image[None]), style)


def literal_features(networks: MetricSet, files: list[Path]) -> np.ndarray:
    """Return the Inception features of image files, (N, features)."""
    features = []
    for first in range(0, len(files), OUTPUTS):
        images = [Image.open(file).convert("RGB") for file in files[first : first + OUTPUTS]]
        batch = torch.stack([TO_INCEPTION(image) for image in images])
        features.append(cast(nn.Module, networks.features.network)(batch))
    return torch.cat(features).double().numpy()


def literal_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of two sets of features.

    It is computed by the singular values of the product of the centred features. scipy's root of a
    product of covariances is inexact where these are singular, as they are for so few images.
    """
    x, y = a - a.mean(0), b - b.mean(0)
    root = np.linalg.norm(x @ y.T, "nuc") / np.sqrt((len(a) - 1) * (len(b) - 1))
    traces = np.square(x).sum() / (len(a) - 1) + np.square(y).sum() / (len(b) - 1)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + traces - 2 * root)


# The project's implementation.


def project(config: Config, translator: TrainedModel, world: World, clock: Clock) -> Outcome:
    """Run an evaluation, with its matrix roots deferred to the end."""
    deferred: list[tuple[Statistics, Statistics]] = []

    def defer(real: Statistics, other: Statistics) -> tuple[float, float]:
        deferred.append((real, other))
        return 0.0, 0.0

    timed_evaluator = evaluator.Evaluator(config, world)
    networks = timed_evaluator.collector.metrics
    assert networks.diversity is not None
    networks.features.forward = clock.timed("features", networks.features.forward)
    networks.diversity.forward = clock.timed("lpips", networks.diversity.forward)
    translate = clock.timed("generation", TrainedModel.translate)
    with (
        mock.patch.object(evaluator, "distances", defer),
        mock.patch.object(TrainedModel, "translate", translate),
        clock("all"),
    ):
        result = timed_evaluator.evaluate(translator, SEED)
    shutil.rmtree(Path(config.run) / "evaluation", ignore_errors=True)
    return _outcome(result, deferred, clock) if world.is_main else {}


def _outcome(
    result: Result, deferred: list[tuple[Statistics, Statistics]], clock: Clock
) -> Outcome:
    metric = result["metrics"][2]
    label = result["domains"].index
    lpips = {
        Task(row["guide"], label(row["source"]), label(row["target"])): row.get(metric)
        for row in result["rows"]
    }
    with clock("roots (not counted)"):
        outcome = {
            task: (distances(*pair)[0], lpips[task])
            for task, pair in zip(tasks(len(result["domains"])), deferred, strict=True)
        }
    return {task: values for task, values in outcome.items() if task.guide != REAL}


# Both, compared.


def counted_seconds(clock: Clock) -> float:
    """Return the seconds of all parts except the roots."""
    return sum(s for name, s in clock.seconds.items() if "not counted" not in name)


def difference(a: Outcome, b: Outcome, number: int) -> float:
    """Return the largest difference of one metric over tasks, relative to its largest value."""
    largest = max(abs(values[number]) for values in a.values())
    return max(abs(a[task][number] - b[task][number]) for task in a) / largest


def time_processes(folder: Path, size: int, count: int) -> float:
    """Return the seconds of an evaluation by `count` processes of one thread each."""
    launcher = [sys.executable]
    if count > 1:
        launcher += ["-m", "stargan_dist.launch", "--multi_gpu", "--main_process_port", "0"]
        launcher += ["--num_processes", str(count)]
    options = ["--rank", str(folder), "--size", str(size)]
    output = subprocess.run(
        [*launcher, __file__, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return float(output.split()[-1])


def run_rank(folder: Path, size: int) -> None:
    """Run one of the processes of `time_processes`; rank 0 prints the seconds."""
    config, world, clock = make_config(folder, size), World(), Clock()
    config = dataclasses.replace(config, run=str(folder / "processes"))
    project(config, make_translator(config), world, clock)
    if world.is_main:
        print(clock.seconds["all"])
    world.close()


def compare(folder: Path, size: int) -> dict[str, float]:
    """Run both implementations; print the seconds of their parts and return the ratios."""
    config, world = make_config(folder, size), World()
    translator = make_translator(config)
    clocks = {name: Clock() for name in ("ours", "ours, cached", "ours, bfloat16", "literal")}
    outcome = project(config, translator, world, clocks["ours"])
    project(config, translator, world, clocks["ours, cached"])
    bfloat16 = dataclasses.replace(config.evaluation, precision="bfloat16")
    fast_config = dataclasses.replace(config, evaluation=bfloat16)
    project(fast_config, translator, world, clocks["ours, bfloat16"])
    translator.bfloat16 = False
    networks = evaluator.Evaluator(config, world).collector.metrics
    expected = literal(translator, networks, folder, clocks["literal"])
    world.close()

    seconds = {
        name: clock.seconds.pop("all", counted_seconds(clock)) for name, clock in clocks.items()
    }
    for name, clock in clocks.items():
        parts = {part: round(value, 1) for part, value in clock.seconds.items()}
        print(f"{name:<16} {seconds[name]:7.1f}  {parts}")
    metrics_seconds = {
        name: seconds[name] - clock.seconds["generation"] for name, clock in clocks.items()
    }
    return {
        "literal_s": seconds["literal"],
        "ours_s": seconds["ours"],
        "ratio": seconds["literal"] / seconds["ours"],
        "ratio_with_cached_real": seconds["literal"] / seconds["ours, cached"],
        "metrics_only_ratio": metrics_seconds["literal"] / metrics_seconds["ours"],
        "fid_difference": difference(expected, outcome, 0),
        "lpips_difference": difference(expected, outcome, 1),
        "bfloat16_ratio": seconds["ours, cached"] / seconds["ours, bfloat16"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=256, help="image size in pixels (default: 256)")
    parser.add_argument(
        "--sources",
        type=int,
        default=2,
        help="validation images per domain, 2 or more (default: 2)",
    )
    parser.add_argument(
        "--processes", action="store_true", help="also compare two processes with one"
    )
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        return run_rank(Path(args.rank), args.size)
    if args.sources < 2:
        parser.error("--sources must be at least 2: statistics need two images per domain")
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), args.size, args.sources)
        figures = compare(Path(folder), args.size)
        if args.processes:
            one, two = (time_processes(Path(folder), args.size, count) for count in (1, 2))
            figures["two_processes_ratio"] = one / two
    rounded = {name: float(f"{value:.3g}") for name, value in figures.items()}
    print(json.dumps({"size": args.size, "sources": args.sources, **rounded}))


if __name__ == "__main__":
    main()
