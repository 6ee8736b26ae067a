"""Count the FLOPs of one iteration: the literal one of the paper's order, and ours.

    python benchmarks/iteration_flops.py [--size 256] [--domains 3] [--batch 1]

Both run on meta tensors (nothing is computed) under torch's own formulas. The literal iteration
is the plainly written one that the tests hold ours equal to; its blocks convolve and resize one
after the other. Ours shares what is equal within the iteration, and fuses convolutions with the
resizing beside them. Last line: JSON, per image.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from baselines.iteration import literal_iteration
from baselines.networks import make_plain
from stargan_dist.config import Config
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import domain_labels
from stargan_dist.nets.v2 import Networks, build_networks
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipe import Terms
from stargan_dist.objectives.recipes import TABLE, resolve


class FlopCount(TorchDispatchMode):
    """Sum torch's FLOP formulas over every operation, backwards and double backwards included.

    FlopCounterMode does the same per module, but its module hooks refuse R1's autograd.grad.
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
    """An engine without optimizers: what an optimizer does is not counted."""

    keeps_graphs = True

    def __init__(self, objective: Objective) -> None:
        self.sides = objective.loss_modules

    def update(
        self, side: str, calls: Sequence[tuple[Any, ...]], steps: tuple[str, ...]
    ) -> tuple[Terms, Terms]:
        (call,) = calls
        loss, terms = self.sides[side](*call)
        loss.backward()
        return terms, {}


def make_batch(size: int, domains: int, batch: int) -> Batch:
    """Random inputs on the current default device."""

    def images() -> torch.Tensor:
        return torch.empty(batch, 3, size, size).uniform_(-1, 1)

    y, y_trg = torch.randint(domains, (2, batch))
    z, z2 = torch.empty(2, batch, 16).normal_()
    return Batch(images(), y, images(), images(), y_trg, z, z2, torch.rand(batch))


def count_gflop(networks: Networks, batch: Batch, *, literal: bool) -> float:
    """GFLOP per image of one iteration, all forwards and backwards."""
    objective = Objective(TABLE["f"], networks._asdict(), domain_labels([]))
    with FlopCount() as counter:
        if literal:
            literal_iteration(networks, None, batch, resolve(Config()).config.loss, lambda_ds=1.0)
        else:
            objective.iterate(BackwardOnly(objective), [batch], step=0)
    return counter.total / 1e9 / len(batch.y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="image size, pixels")
    parser.add_argument("--domains", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    with torch.device("meta"):
        networks = build_networks(args.domains, args.size)
        batch = make_batch(args.size, args.domains, args.batch)
        ours = count_gflop(networks, batch, literal=False)
        literal = count_gflop(make_plain(networks), batch, literal=True)
        shared = count_gflop(networks, batch, literal=False)
    print(f"literal iteration {literal:10.1f} GFLOP per image")
    print(f"sharing alone     {shared:10.1f} GFLOP per image ({shared / literal:.3f})")
    print(f"ours              {ours:10.1f} GFLOP per image ({ours / literal:.3f})")
    row = {"literal_gflop": literal, "ours_gflop": ours, "ratio": ours / literal}
    print(json.dumps({name: round(value, 4) for name, value in row.items()}))


if __name__ == "__main__":
    main()
