"""Time iterations and translations on a GPU, against the literal iteration.

    python benchmarks/gpu.py [--size 256] [--batch 8] [--iterations 24] [--cases NAME …]
        [options of stargan_dist.train for all cases]

The literal iteration (baselines/iteration.py) computes every phase by itself in float32 with TF32,
as the authors' program does on such a GPU. The other cases are iterations of a training, optimizers
and averages included, with the options that CASES names; `translation` is ten latent-guided outputs
of each source by the averaged networks in bfloat16. All use random images that are on the device.
The first WARM_UP iterations of a case are not timed.

`host` is the share of the time in which the host issues work: the lower, the longer it waits for
the GPU. `from shards` trains in a process of its own on drawn animals, and has the share of the
time that it waits for data. On a machine without a GPU the same runs on the CPU, for tests.

The last line is one JSON object: images/s of each case, and `ours_to_literal`, the fastest training
case to the literal one.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inputs import random_batch
from training import draw_shards, train, words

from baselines.iteration import literal_iteration
from baselines.networks import make_plain
from stargan_dist import config as configs
from stargan_dist.console.tables import format_table
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.errors import run_command
from stargan_dist.inference.model import TrainedModel
from stargan_dist.objectives.recipes import RunSpec, resolve
from stargan_dist.objectives.schedules import SCHEDULES
from stargan_dist.training.train_state import TrainState, build_optimizers
from stargan_dist.training.trainer import initialise

WARM_UP = 3
LABELS = domain_labels(["a", "b", "c"])
STYLES = 10  # of a source
IMAGES, STEPS, LOGGED = 100, 60, 20  # of the training from shards: images per species
PLAIN = ("--engine.channels_last", "off")
CASES: dict[str, tuple[str, ...]] = {
    "tf32": PLAIN,
    "channels_last": (),
    "bfloat16": ("--precision", "bfloat16"),
    "bfloat16_most": ("--precision", "bfloat16_most"),
    "compiled": ("--precision", "bfloat16_most", "--engine.compile", "true"),
    **{
        f"schedule_{name}": ("--precision", "bfloat16", "--schedule", name)
        for name in SCHEDULES
        if name != "published"
    },
}
LITERAL, TRANSLATION, SHARDS = "literal", "translation", "from_shards"


class Figures(NamedTuple):
    """What is measured of a case."""

    images_per_second: float
    host: float | None = None
    peak_gib: float | None = None
    data_wait: float | None = None


def measure(run: Callable[[], object], images: int, iterations: int, world: World) -> Figures:
    """Time a function of `images` images."""
    for _ in range(WARM_UP):
        run()
    _synchronize(world)
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    for _ in range(iterations):
        run()
    issued = time.perf_counter() - begin
    _synchronize(world)
    seconds = time.perf_counter() - begin
    on_gpu = world.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    return Figures(iterations * images / seconds, issued / seconds, peak)


def _synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def spec_of(args: argparse.Namespace, *options: str) -> RunSpec:
    """Return the specification of a training of the benchmark's size."""
    sizes: dict[str, object] = {
        "run": "benchmark", "data.shards": "none", "batch_size": args.batch,
        "model.image_size": args.size,
    }  # fmt: skip
    return resolve(configs.parse([*words(sizes), *args.options, *options]))


def time_literal(args: argparse.Namespace, world: World) -> Figures:
    """Time the literal iteration."""
    spec = spec_of(args, *PLAIN)
    networks = make_plain(TrainState(spec, LABELS, world.device).networks)
    optimizers = build_optimizers(networks, spec.config.optim)
    batch = random_batch(args.size, len(LABELS.names), args.batch).to(world.device, torch.float32)
    run = partial(literal_iteration, networks, optimizers, batch, spec.config.loss, 1.0)
    return measure(run, args.batch, args.iterations, world)


def time_training(args: argparse.Namespace, world: World, options: tuple[str, ...]) -> Figures:
    """Time the iterations of a training."""
    spec = spec_of(args, *options)
    state, engine = initialise(spec, LABELS, world)
    batch = random_batch(args.size, len(LABELS.names), args.batch).to(world.device, state.dtype)
    steps = iter(range(10**9))

    def iterate() -> None:
        step = next(steps)
        state.objective.iterate(engine, [batch], step)
        state.update_averages(engine, step)

    with closing(engine):
        return measure(iterate, args.batch, args.iterations, world)


def time_translation(args: argparse.Namespace, world: World) -> Figures:
    """Time latent-guided translations, in outputs."""
    spec = spec_of(args)
    state = TrainState(spec, LABELS, world.device)
    model = TrainedModel(state.ema, spec, LABELS, 0, bfloat16=world.device.type == "cuda")
    batch = random_batch(args.size, len(LABELS.names), args.batch).to(world.device, torch.float32)
    y_trg = batch.y_trg.repeat_interleave(STYLES)
    z = torch.randn(len(y_trg), spec.config.model.latent_dim, device=world.device)
    run = partial(model.from_latents, batch.x, y_trg, z)
    return measure(run, len(y_trg), args.iterations, world)


def time_shards(args: argparse.Namespace) -> Figures:
    """Train on shards, as a user does, and return what the run logs at its end."""
    with tempfile.TemporaryDirectory() as temporary:
        options: dict[str, object] = {
            "data.shards": draw_shards(Path(temporary), IMAGES, args.size), "steps": STEPS,
            "batch_size": args.batch, "model.image_size": args.size,
            "precision": "bfloat16", "monitor.sample_every": 0, "monitor.log_every": LOGGED,
            "checkpoint.every": STEPS,
        }  # fmt: skip
        last = train(Path(temporary, "run"), [*words(options), *args.options])[-1]
    rate, wait = (last[f"speed/{n}"] for n in ("images_per_second", "data_wait_share"))
    return Figures(rate, data_wait=wait)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--batch", type=int, default=8, help="sources (default: 8)")
    parser.add_argument(
        "--iterations",
        type=int,
        default=24,
        help="of each case; all terms of every schedule are computed in 24 (default: 24)",
    )
    names = [LITERAL, *CASES, TRANSLATION, SHARDS]
    parser.add_argument("--cases", nargs="+", default=names, choices=names, metavar="NAME")
    args, options = parser.parse_known_args()
    args.options = options
    found: dict[str, Figures] = {}
    with closing(World()) as world:
        device = torch.cuda.get_device_name() if world.device.type == "cuda" else "CPU"
        timers: dict[str, Callable[[], Figures]] = {
            LITERAL: partial(time_literal, args, world),
            **{name: partial(time_training, args, world, CASES[name]) for name in CASES},
            TRANSLATION: partial(time_translation, args, world),
            SHARDS: partial(time_shards, args),
        }
        for name in args.cases:
            found[name] = timers[name]()
            print(f"{name}: {found[name].images_per_second:.1f} images/s", flush=True)
    print(f"\n{device}, {args.size} px, batches of {args.batch}")
    print(table(found))
    print(json.dumps(summary(found, device)))


def table(found: dict[str, Figures]) -> str:
    """Format a row for each case."""
    rows = [["case", "images/s", "host", "peak GiB", "data wait"]]
    for name, figures in found.items():
        shown = ("" if value is None else f"{value:.2f}" for value in figures)
        rows.append([name, *shown])
    return format_table(rows, left=[0])


def summary(found: dict[str, Figures], device: str) -> dict[str, object]:
    """Return the last line."""
    rates = {name: round(figures.images_per_second, 2) for name, figures in found.items()}
    ours = [found[name].images_per_second for name in CASES if name in found]
    literal = found.get(LITERAL)
    ratio = round(max(ours) / literal.images_per_second, 3) if ours and literal else None
    return {"device": device, **rates, "ours_to_literal": ratio}


if __name__ == "__main__":
    run_command(main)
