"""Driver: run a few iterations with each of several engines, in one world of real processes.

Usage: torchrun-like launcher … engines.py OUT CASE [CASE …]
Rank 0 writes the final parameters of each case to OUT/CASE.safetensors.
"""

import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from stargan_dist import config as configs
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.nets.v2 import Discriminator
from stargan_dist.objectives import loss_modules, recipes, terms
from stargan_dist.training import train_state, trainer
from tests.helpers import iterations
from tests.helpers.models import tiny_landmarks
from tests.objectives.test_objective import make_batch, make_pairs

ITERATIONS, BATCH = 3, 8
# By the prefix of a case; others start at step 0, where pools are filled.
STARTS = {"recipe_cyclegan": 0, "recipe_": 3, "sparse": 6, "fast": 6, "later": 6}
TINY = {"base_width": 4, "max_width": 8, "style_dim": 6, "latent_dim": 5, "mapping_dim": 7}
BASE = [
    *("--run", "r", "--data.shards", "s", "--batch_size", str(BATCH), "--model.image_size", "32"),
    *(word for name, value in TINY.items() for word in (f"--model.{name}", str(value))),
    *("--optim.lr", "0.01", "--optim.lr_mapping", "0.01", "--optim.lr_content", "0.01"),
]
RECIPES = [name for name in recipes.TABLE if name != "f"]
WITH_ZERO = ("stargan", "b", "d", "cyclegan", "munit", "msgan")
ONE_STEP = ("stargan", "cyclegan", "munit")
OF_PAIRS = ("cyclegan", "munit", "msgan")


def zero(stage, *more):
    return ["--engine.name", "deepspeed", "--engine.zero_stage", str(stage), *more]


SUMMED = ["--schedule", "summed"]
SPARSE = ["--schedule", "sparse"]
FAST = ["--schedule", "fast"]
FLOAT64 = ["--precision", "float64"]
# By default DeepSpeed does not partition small parameters, and all of these are small.
RELEASED = ["--engine.deepspeed_config", str(Path(__file__).parent / "release_all.json")]
OFFLOADED = ["--engine.offload_optimizer", "true"]
OFFLOADED_3 = zero(3, *SUMMED, *RELEASED, *OFFLOADED, "--engine.offload_parameters", "true")
HIGH_PASS = ["--model.w_hpf", "1"]
TWO = ["--engine.accumulate", "2"]
CLIP = [word for n in "GFED" for word in (f"--optim.clip.{n}", "0.05")]
CASES = {
    "ddp": [],
    "ddp_clipped": CLIP,
    "ddp_accumulated": TWO,
    "ddp_summed_apart": SUMMED,
    "ddp_summed_apart_float64": SUMMED + FLOAT64,
    "ddp_float64": FLOAT64,
    "ddp_summed_float64": SUMMED + FLOAT64,
    "ddp_float64_accumulated": FLOAT64 + TWO,
    "zero0": zero(0),
    "zero1": zero(1),
    "zero2": zero(2),
    "zero1_offloaded": zero(1, *OFFLOADED),
    "zero1_accumulated": zero(1, *TWO),
    "zero2_accumulated": zero(2, *TWO),
    "ddp_infinite": [],
    "zero1_infinite": zero(1),
    "zero2_infinite": zero(2),
    "zero2_clipped": zero(2, *CLIP),
    "zero3_summed": zero(3, *SUMMED, *RELEASED),
    "zero3_offloaded_accumulated": [*OFFLOADED_3, *TWO],
    "ddp_summed_accumulated": [*SUMMED, *TWO],
    "no_all_reduce": [],
    "sparse": SPARSE,
    "sparse_float64": SPARSE + FLOAT64,
    "sparse_accumulated": SPARSE + FLOAT64 + TWO,
    "sparse_zero2": zero(2, *SPARSE),
    "later": [],
    "fast": FAST,
    "fast_float64": FAST + FLOAT64,
    "fast_accumulated": FAST + FLOAT64 + TWO,
    "fast_zero2": zero(2, *FAST),
    "high_pass": HIGH_PASS,
    "high_pass_float64": HIGH_PASS + FLOAT64,
    "high_pass_accumulated": HIGH_PASS + FLOAT64 + TWO,
    "high_pass_summed_apart": HIGH_PASS + SUMMED,
    "high_pass_zero2": zero(2, *HIGH_PASS),
    "high_pass_zero3": zero(3, *SUMMED, *RELEASED, *HIGH_PASS),
}
RECIPE_CASES = {
    **{f"recipe_{name}": ["--recipe", name, *FLOAT64] for name in RECIPES},
    **{f"recipe_{name}_float32": ["--recipe", name] for name in WITH_ZERO},
    **{f"recipe_{name}_zero2": zero(2, "--recipe", name) for name in WITH_ZERO},
    **{f"recipe_{name}_zero3": zero(3, *SUMMED, *RELEASED, "--recipe", name) for name in ONE_STEP},
    **{f"recipe_{name}_accumulated": ["--recipe", name, *FLOAT64, *TWO] for name in OF_PAIRS},
    "recipe_msgan_summed_apart": ["--recipe", "msgan", *SUMMED],
    "recipe_msgan_zero3": zero(3, *SUMMED, *RELEASED, "--recipe", "msgan"),
}
# Each of two options alone, which the quick cases have together.
SLOW = {
    "zero3_offloaded": OFFLOADED_3,
    "zero3_accumulated": zero(3, *SUMMED, *RELEASED, *TWO),
}
MISTAKES = ("d_not_frozen", "e_stepped_by_references")


def plain_optimizers(networks, config, batch_size):
    """Build SGD optimizers, which do not amplify rounding noise as Adam does."""
    return {n: torch.optim.SGD(net.parameters(), lr=config.lr) for n, net in networks.items()}


@contextmanager
def mutated(case):
    """Context manager: introduce the mistake that the case names; make the pool of fakes small."""
    frozen, table = loss_modules.frozen, {**recipes.TABLE}
    # Such that three iterations exchange fakes.
    recipes.TABLE["cyclegan"] = replace(table["cyclegan"], pool_size=1)
    if case.endswith("d_not_frozen"):
        loss_modules.frozen = lambda *nets: frozen(
            *[net for net in nets if not isinstance(net, Discriminator)]
        )
    if case == "e_stepped_by_references":
        wrong = terms.REFERENCE._replace(trains=("G", "E"))
        recipes.TABLE["f"] = replace(table["f"], guides=(terms.LATENT, wrong))
    try:
        yield
    finally:
        loss_modules.frozen = frozen
        recipes.TABLE.update(table)


def begin(options, world, saved=None):
    """Return the training state and its engine, initialised or restored, as the trainer does."""
    config = configs.parse([*BASE, *options])
    spec = recipes.resolve(config)
    labels = domain_labels(["a", "b"] if spec.recipe.takes_pairs else ["a", "b", "c"])
    landmarks = tiny_landmarks() if config.model.w_hpf else None
    return trainer.initialise(spec, labels, world, saved, landmarks)


def iterate(training, engine, world, steps, infinite=None):
    """Train on this rank's part of synthetic batches.

    At the step `infinite`, an image of rank 0 has an infinite pixel.
    """
    size = BATCH // world.size
    local = slice(world.rank * size, (world.rank + 1) * size)
    make = make_pairs if training.spec.recipe.takes_pairs else make_batch
    for step in steps:
        global_batch = make(step, BATCH)
        batch = type(global_batch)(*(t if t is None else t[local] for t in global_batch))
        batch = batch.to(world.device, training.dtype)
        if step == infinite and world.is_main:
            batch.x[0, 0, 0, 0] = float("inf")
        micro_batches = batch.split(training.config.engine.accumulate)
        iterations.iterate(training, engine, micro_batches, step)


def run(case, world):
    """Run one case. Returns the final snapshot, on rank 0, and the number of all-reduces by DDP."""
    training, engine = begin((CASES | RECIPE_CASES | SLOW).get(case, []), world)
    engine.keeps_graphs &= "apart" not in case
    if case == "no_all_reduce" and world.size > 1:
        engine._modules = dict(training.parts.loss_modules)
    all_reduces = []
    if world.size > 1 and case in ("ddp", "ddp_accumulated"):
        for module in engine._modules.values():
            module.register_comm_hook(all_reduces, count_and_all_reduce)
    # Some recipes step G only in every fifth iteration.
    # Some schedules have terms of every eighth.
    start = next((n for prefix, n in STARTS.items() if case.startswith(prefix)), 0)
    # With masks a third iteration in float32 differs from one in float64 by 3e-6, of any engine.
    steps = range(start, start + (2 if case.startswith("high_pass") else ITERATIONS))
    iterate(training, engine, world, steps, 1 if "infinite" in case else None)
    snapshot = training.snapshot(engine, keep=world.is_main)
    engine.close()
    return snapshot, len(all_reduces)


def count_and_all_reduce(all_reduces, bucket):
    all_reduces.append(None)
    return allreduce_hook(None, bucket)


def main():
    out, *cases = sys.argv[1:]
    train_state.build_optimizers = plain_optimizers
    world = World()
    for case in cases:
        with mutated(case):
            snapshot, all_reduces = run(case, world)
        if snapshot:
            averages = {f"ema.{name}": value for name, value in snapshot.ema.items()}
            averages["all_reduces"] = torch.tensor(all_reduces)
            pool = {f"pool.{name}": value for name, value in snapshot.pool.items()}
            save_file(snapshot.networks | averages | pool, Path(out) / f"{case}.safetensors")
    world.close()


if __name__ == "__main__":
    main()
