"""Count the FLOPs of one iteration: the literal iteration against the project's.

    python benchmarks/iteration_flops.py [--size 256] [--domains 3] [--batch 1] [--high-pass]

The literal iteration (baselines/iteration.py) is the paper's order written as plainly as possible;
tests require the project's iteration to equal it. Its blocks convolve and resize one after the
other (baselines/networks.py). The project's iteration shares what is equal within it, and fuses
convolutions with the resizing beside them.

Both run on meta tensors, which compute nothing, and are counted by torch's own formulas. The last
line is JSON, per image.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inputs import random_batch, starganv2_networks

from baselines.iteration import literal_iteration
from baselines.networks import make_plain
from stargan_dist.config import Config, ModelConfig
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import Labels, domain_labels
from stargan_dist.nets.fan import FAN
from stargan_dist.nets.masks import LandmarkMasks, MaskFunction, no_masks
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipe import Recipe, Terms
from stargan_dist.objectives.recipes import TABLE, resolve
from stargan_dist.objectives.schedules import SCHEDULES

NO_LABELS = domain_labels([])  # StarGAN v2 needs none here: styles have the domain


class FlopCount(TorchDispatchMode):
    """Sum of torch's FLOP formulas over every operation, of backward and double backward too.

    torch's FlopCounterMode does the same per module, but its module hooks reject the autograd.grad
    of R1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


class BackwardOnly:
    """Engine without optimizers, whose work is not counted."""

    keeps_graphs = True

    def __init__(self, objective: Objective) -> None:
        self.loss_modules = objective.loss_modules

    def update(
        self, module: str, calls: Sequence[tuple[Any, ...]], trains: tuple[str, ...]
    ) -> tuple[Terms, Terms]:
        (call,) = calls
        loss, terms = self.loss_modules[module](*call)
        loss.backward()
        return terms, {}


def count_gflop(
    networks: Mapping[str, nn.Module],
    batch: Batch,
    masks: MaskFunction,
    *,
    literal: bool = False,
    schedule: str = "published",
    recipe: Recipe = TABLE["f"],
    labels: Labels = NO_LABELS,
) -> float:
    """Return the GFLOP per image of an iteration: every forward and backward.

    It is the mean over the iterations in which every network steps and every term is computed.
    """
    objective = Objective(recipe, networks, labels, schedule, masks)
    steps = objective.period
    with FlopCount() as counter:
        if literal:
            weights = resolve(Config()).config.loss
            literal_iteration(networks, None, batch, weights, lambda_ds=1.0, masks=masks)
        else:
            for step in range(steps):
                objective.iterate(BackwardOnly(objective), [batch], step)
    return counter.total / 1e9 / len(batch.y) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="image size in pixels (default: 256)")
    parser.add_argument("--domains", type=int, default=3, help="number of domains (default: 3)")
    parser.add_argument("--batch", type=int, default=1, help="images per iteration (default: 1)")
    parser.add_argument(
        "--high-pass", action="store_true", help="with masks of the published landmark network"
    )
    args = parser.parse_args()
    with torch.device("meta"):
        networks = starganv2_networks(args.domains, ModelConfig(args.size, w_hpf=args.high_pass))
        batch = random_batch(args.size, args.domains, args.batch)
        masks = LandmarkMasks(FAN().eval()) if args.high_pass else no_masks
        by_schedule = {
            name: count_gflop(networks, batch, masks, schedule=name) for name in SCHEDULES
        }
        literal = count_gflop(make_plain(networks), batch, masks, literal=True)
        shared = count_gflop(networks, batch, masks)
    print(f"literal iteration {literal:10.1f} GFLOP per image")
    print(f"only sharing      {shared:10.1f} GFLOP per image ({shared / literal:.3f})")
    for name, gflop in by_schedule.items():
        print(f"{name:17} {gflop:10.1f} GFLOP per image ({gflop / literal:.3f})")
    ours = by_schedule["published"]
    row = {
        "literal_gflop": literal,
        "ours_gflop": ours,
        "ratio": ours / literal,
        "fast_ratio": by_schedule["fast"] / literal,
    }
    print(json.dumps({name: round(value, 4) for name, value in row.items()}))


if __name__ == "__main__":
    main()
