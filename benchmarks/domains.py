"""Measure the cost of an iteration, of dense gradients and of Adam against the number of domains K.

    OMP_NUM_THREADS=1 python benchmarks/domains.py [--size 64] [--batch 2] [--repeats 3]

The benchmark first times F alone at growing K: forward and backward, with gradients that are dense
whichever domains the batch has, and the step of Adam.

It then times one iteration at full width, with F of the forms `branches` and `conditional`, and in
a literal form (literal_heads.py), which computes every branch of F, E and D and then selects. G and
the trunks of E and D are the same in all cases. Networks and losses (forward and backward of all
four phases) are timed apart from the steps of Adam. There is one process, hence no all-reduce.

Times are processor time of all threads, which other programs disturb least. The cases alternate,
in reverse order in every other repeat; each phase counts with its fastest repeat. The last line is
JSON: the ratios of networks and losses.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inputs import model_of_size, random_batch, starganv2_networks
from literal_heads import make_literal

from stargan_dist.data.labels import domain_labels
from stargan_dist.nets.blocks import StackedLinear
from stargan_dist.nets.v2 import MappingNetwork
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipe import Terms
from stargan_dist.objectives.recipes import ADAM_V2, TABLE
from stargan_dist.training.train_state import build_optimizers

Form = Literal["branches", "conditional", "literal"]  # a form of F, or the literal networks
Case = tuple[Form, int]  # form, number of domains
DOMAIN_COUNTS: dict[Form, tuple[int, ...]] = {
    "branches": (2, 10, 100),
    "conditional": (2, 10, 100, 1000),
    "literal": (2, 10, 100),
}
CASES: list[Case] = [(form, count) for form, counts in DOMAIN_COUNTS.items() for count in counts]
RATIOS: list[Case] = [("branches", 100), ("conditional", 1000), ("literal", 100)]  # each to K = 2
F_DOMAIN_COUNTS = (2, 100, 1000)  # of F alone; at 1000 its branches have 820 M parameters
BATCH_DOMAINS = 8  # most domains with a gradient in an iteration: the paper's batch size


class TimedEngine:
    """Engine of one process that times the optimizers apart from everything else.

    Attributes:
        pass_seconds: of networks and losses since the end of the previous update, by update.
        step_seconds: of the optimizers, by update. An iteration has four updates.
    """

    keeps_graphs = True

    def __init__(self, objective: Objective, networks: Mapping[str, nn.Module]) -> None:
        self.loss_modules = objective.loss_modules
        self.optimizers = build_optimizers(networks, ADAM_V2)
        for letter, network in networks.items():
            set_zero_gradients(network)
            self.optimizers[letter].step()  # allocates the moments
            self.optimizers[letter].zero_grad()
        self.pass_seconds: list[float] = []
        self.step_seconds: list[float] = []
        self.ended = time.process_time()

    def _step(self, trains: tuple[str, ...]) -> None:
        for letter in trains:
            self.optimizers[letter].step()

    def update(
        self, module: str, calls: Sequence[tuple[Any, ...]], trains: tuple[str, ...]
    ) -> tuple[Terms, Terms]:
        (call,) = calls
        loss, terms = self.loss_modules[module](*call)
        loss.backward()
        self.pass_seconds.append(time.process_time() - self.ended)
        self.step_seconds.append(processor_seconds(lambda: self._step(trains)))
        self.ended = time.process_time()
        self.loss_modules[module].zero_grad(set_to_none=True)
        return terms, {}


def set_zero_gradients(network: nn.Module) -> None:
    """Set every gradient to zero, for a first step of Adam that allocates its moments."""
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)


def processor_seconds(function: Callable[[], object]) -> float:
    """Call a function and return the processor time that it took."""
    start = time.process_time()
    function()
    return time.process_time() - start


def build_networks(form: Form, domains: int, size: int) -> dict[str, nn.Module]:
    """Build the networks of one case at full width."""
    torch.manual_seed(0)
    if form == "literal":
        return make_literal(starganv2_networks(2, model_of_size(size)), domains)
    return starganv2_networks(domains, model_of_size(size, mapping=form))


def time_iteration(form: Form, domains: int, size: int, batch_size: int) -> list[float]:
    """Return the seconds of one iteration: four of networks and losses, then four of Adam."""
    networks = build_networks(form, domains, size)
    objective = Objective(TABLE["f"], networks, domain_labels([""] * domains))
    batch = random_batch(size, domains, batch_size)
    engine = TimedEngine(objective, networks)
    objective.iterate(engine, [batch], step=0)
    return engine.pass_seconds + engine.step_seconds


def time_cases(size: int, batch_size: int, repeats: int) -> dict[Case, tuple[float, float]]:
    """Return the seconds of an iteration of each case: networks and losses; Adam."""
    time_iteration("conditional", 2, size, batch_size)  # warms up code and kernels
    fastest = {case: [float("inf")] * 8 for case in CASES}
    for repeat in range(repeats):
        for case in CASES if repeat % 2 == 0 else reversed(CASES):
            times = time_iteration(*case, size, batch_size)
            fastest[case] = [min(pair) for pair in zip(fastest[case], times, strict=True)]
            log = f"repeat {repeat + 1} of {repeats}: {case[0]}, {case[1]} domains"
            print(f"{log}, {sum(times[:4]):.2f} s", file=sys.stderr, flush=True)
    return {case: (sum(times[:4]), sum(times[4:])) for case, times in fastest.items()}


def constant_module(build: Callable[..., nn.Module], *args: int) -> nn.Module:
    """Build a module with constant weights: drawing random ones would take longer than the rest."""
    with torch.device("meta"):
        module = build(*args)
    module = module.to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.constant_(parameter, 1e-3)
    return module


def time_mapping(domains: int) -> float:
    """Return the seconds of forward and backward of F, form `branches`, with dense gradients."""
    F = constant_module(MappingNetwork, domains)
    z, y = torch.randn(BATCH_DOMAINS, 16), torch.randint(domains, (BATCH_DOMAINS,))
    times = []
    for _ in range(2):
        times.append(processor_seconds(lambda: F(z, y).sum().backward()))
        F.zero_grad(set_to_none=True)
    return min(times)


def time_adam(module: nn.Module) -> float:
    """Return the seconds of one step of dense Adam on a module."""
    optimizer = build_optimizers({"F": module}, ADAM_V2)["F"]
    set_zero_gradients(module)
    optimizer.step()
    return min(processor_seconds(optimizer.step) for _ in range(2))


def time_branches_adam(domains: int) -> float:
    """Return the seconds of one step of dense Adam on the branches of F.

    Layers are timed one after the other: together they might not fit in memory.
    """
    dims = [(512, 512)] * 3 + [(512, 64)]
    return sum(time_adam(constant_module(StackedLinear, domains, *pair)) for pair in dims)


def time_mapping_alone(domains: int) -> dict[str, float]:
    """Measure F, form `branches`, without the other networks."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in MappingNetwork(domains).parameters())
    return {
        "F_domains": domains,
        "parameters": parameters,
        "forward_backward_s": time_mapping(domains),
        "adam_s": time_branches_adam(domains),
        "adam_picked_rows_s": time_branches_adam(min(BATCH_DOMAINS, domains)),
    }


def print_json(row: Mapping[str, float | str]) -> None:
    """Print a row as one line of JSON, rounded."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps(rounded), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="image size in pixels (default: 64)")
    parser.add_argument("--batch", type=int, default=2, help="images per iteration (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="of each case (default: 3)")
    args = parser.parse_args()
    for domains in F_DOMAIN_COUNTS:
        print_json(time_mapping_alone(domains))
    fastest = time_cases(args.size, args.batch, args.repeats)
    for (form, domains), (networks, adam) in fastest.items():
        print_json({"form": form, "domains": domains, "networks_s": networks, "adam_s": adam})
    print_json({f"{f}_{k}_to_2": fastest[f, k][0] / fastest[f, 2][0] for f, k in RATIOS})


if __name__ == "__main__":
    main()
