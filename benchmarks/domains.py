"""What the number of domains K costs in an iteration, and what dense gradients and Adam cost.

    OMP_NUM_THREADS=1 python benchmarks/domains.py [--size 64] [--batch 2] [--repeats 3]

One iteration at full width, for F of the forms `branches` and `conditional` and for the literal
version that computes every branch of F, E and D and then picks; G and the trunks are the same in
all. Networks and losses, forward and backward of all four phases, are timed apart from Adam's
steps; one process has no all-reduce. Then F alone: what its gradients, which are dense whatever
was picked, and its Adam cost as K grows.

Times are of the processor (all threads), which other programs disturb least. Cases take turns, in
every other repeat the other way round; of each phase its fastest repeat counts. Last line: JSON,
the ratios of networks and losses.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from iteration_flops import make_batch
from literal_heads import make_literal

from stargan_dist.data.labels import domain_labels
from stargan_dist.nets.blocks import StackedLinear
from stargan_dist.nets.v2 import MappingNetwork, Networks, build_networks
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipe import Terms
from stargan_dist.objectives.recipes import ADAM_V2, TABLE
from stargan_dist.training.train_state import build_optimizers

Case = tuple[str, int]  # form of F or "literal", domains
CASES: list[Case] = [
    *[("branches", domains) for domains in (2, 10, 100)],
    *[("conditional", domains) for domains in (2, 10, 100, 1000)],
    *[("literal", domains) for domains in (2, 10, 100)],
]
ALONE = (2, 100, 1000)  # domains of F alone: at 1000 its branches have 820 M parameters
PICKED = 8  # rows with a gradient in an iteration: a batch of the paper


class Timed:
    """An engine in one process that times each of its updates, and its optimizers apart.

    `passes` has the seconds of networks and losses since the end of the update before, `steps`
    those of the optimizers: four each.
    """

    keeps_graphs = True

    def __init__(self, objective: Objective, networks: Networks) -> None:
        self.sides = objective.loss_modules
        self.optimizers = build_optimizers(networks._asdict(), ADAM_V2)
        for network, optimizer in zip(networks, self.optimizers.values(), strict=True):
            begin_moments(network)
            optimizer.step()
            optimizer.zero_grad()
        self.passes: list[float] = []
        self.steps: list[float] = []
        self.ended = time.process_time()

    def _step(self, steps: tuple[str, ...]) -> None:
        for name in steps:
            self.optimizers[name].step()

    def update(
        self, side: str, calls: Sequence[tuple[Any, ...]], steps: tuple[str, ...]
    ) -> tuple[Terms, Terms]:
        (call,) = calls
        loss, terms = self.sides[side](*call)
        loss.backward()
        passed = time.process_time() - self.ended
        self.steps.append(seconds(lambda: self._step(steps)))
        self.ended = time.process_time()
        self.sides[side].zero_grad(set_to_none=True)
        self.passes.append(passed)
        return terms, {}


def begin_moments(network: nn.Module) -> None:
    """Gradients of zero, for a first step that makes Adam's moments."""
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a work."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def make_networks(form: str, domains: int, size: int) -> Networks:
    torch.manual_seed(0)
    if form == "literal":
        return make_literal(build_networks(2, size), domains)
    return build_networks(domains, size, mapping=form)


def time_iteration(form: str, domains: int, size: int, batch_size: int) -> list[float]:
    """Seconds of the parts of one iteration: four of networks and losses, then four of Adam."""
    networks = make_networks(form, domains, size)
    objective = Objective(TABLE["f"], networks._asdict(), domain_labels([""] * domains))
    batch = make_batch(size, domains, batch_size)
    engine = Timed(objective, networks)
    objective.iterate(engine, [batch], step=0)
    return engine.passes + engine.steps


def time_cases(size: int, batch_size: int, repeats: int) -> dict[Case, tuple[float, float]]:
    """Seconds of an iteration of each case: networks and losses; Adam."""
    time_iteration("conditional", 2, size, batch_size)  # warms up: code, kernels
    fastest = {case: [float("inf")] * 8 for case in CASES}
    for repeat in range(repeats):
        for case in CASES if repeat % 2 == 0 else reversed(CASES):
            times = time_iteration(*case, size, batch_size)
            fastest[case] = [min(pair) for pair in zip(fastest[case], times, strict=True)]
            print(f"# {repeat} {case} {sum(times[:4]):.2f} s", file=sys.stderr, flush=True)
    return {case: (sum(parts[:4]), sum(parts[4:])) for case, parts in fastest.items()}


def made(build: Callable[..., nn.Module], *args: int) -> nn.Module:
    """A module with constant weights: random ones would take longer than all the rest."""
    with torch.device("meta"):
        module = build(*args)
    module = module.to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.constant_(parameter, 1e-3)
    return module


def time_mapping(domains: int) -> float:
    """Seconds of forward and backward of F, form `branches`, its dense gradients included."""
    F = made(MappingNetwork, domains)
    z, y = torch.randn(PICKED, 16), torch.randint(domains, (PICKED,))
    times = []
    for _ in range(2):
        times.append(seconds(lambda: F(z, y).sum().backward()))
        F.zero_grad(set_to_none=True)
    return min(times)


def time_adam(module: nn.Module) -> float:
    """Seconds of one step of a module's dense Adam."""
    optimizer = build_optimizers({"F": module}, ADAM_V2)["F"]
    begin_moments(module)
    optimizer.step()
    return min(seconds(optimizer.step) for _ in range(2))


def time_stacked_adam(domains: int) -> float:
    """The same for the branches of F, one layer after the other: together they might not fit."""
    dims = [(512, 512)] * 3 + [(512, 64)]
    return sum(time_adam(made(StackedLinear, domains, *pair)) for pair in dims)


def alone(domains: int) -> dict[str, float]:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in MappingNetwork(domains).parameters())
    return {
        "F_domains": domains,
        "parameters": parameters,
        "forward_backward_s": time_mapping(domains),
        "adam_s": time_stacked_adam(domains),
        "adam_picked_rows_s": time_stacked_adam(min(PICKED, domains)),
    }


def show(row: Mapping[str, float | str]) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(rounded), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="image size, pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    for domains in ALONE:
        show(alone(domains))
    fastest = time_cases(args.size, args.batch, args.repeats)
    for (form, domains), (passes, adam) in fastest.items():
        show({"form": form, "domains": domains, "networks_s": passes, "adam_s": adam})
    wanted = [("branches", 100), ("conditional", 1000), ("literal", 100)]
    show({f"{f}_{k}_to_2": fastest[f, k][0] / fastest[f, 2][0] for f, k in wanted})


if __name__ == "__main__":
    main()
