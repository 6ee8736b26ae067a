"""Command line: memory per GPU of a configuration, before it is trained; costs of more domains.

python -m stargan_dist.memory --config configs/afhq.yaml --domains 3 --processes 8
python -m stargan_dist.memory --config configs/afhq.yaml --domains 2 5 20 --recipes f cyclegan

The second form prints what it takes to translate between all of K domains: trainings, parameters
and bytes in sum, where a recipe between two domains is trained on each pair.
"""

import argparse
import json
from collections.abc import Mapping, Sequence

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.console.arguments import integer
from stargan_dist.console.tables import format_table
from stargan_dist.data.labels import Labels, domain_labels
from stargan_dist.data.sources import open_sources
from stargan_dist.errors import UserError, run_command
from stargan_dist.training.domain_costs import DomainCosts, domain_costs
from stargan_dist.training.memory_estimate import ENGINES, Memory, estimate_engines
from stargan_dist.training.options import configure

NOTES = """\
Each part is at its largest, so the total is an upper bound: gradients grow as activations shrink.
Not included: the CUDA context, kernel workspaces, the allocator's reserve, evaluations. With ZeRO:
DeepSpeed's buckets, its copy of the weights that a rank steps, what stage 3 gathers."""


def parse_args() -> tuple[argparse.Namespace, Config]:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.memory",
        description="Estimate the memory per GPU of a configuration, before it is trained.",
        epilog="All other options are those of training, such as --config FILE: "
        "python -m stargan_dist.train --help explains them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--domains", type=integer(1), nargs="+", metavar="K", default=[],
        help="number of domains (default: as in the shards); several numbers: print the costs of "
        "each, in sum over all trainings",
    )  # fmt: skip
    parser.add_argument(
        "--recipes", nargs="+", metavar="RECIPE", default=[],
        help="recipes to compare in their costs (default: that of the configuration)",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=integer(1), metavar="W", help="number of GPUs (default: 1)"
    )
    parser.add_argument(
        "--zero-stage", type=int, choices=range(4), help="0: DDP (default: print all stages)"
    )
    parser.add_argument("--json", action="store_true", help="print bytes as JSON, not a table")
    args, training_options = parser.parse_known_args()
    if costs_asked(args) and (args.processes or args.zero_stage is not None):
        parser.error("--processes and --zero-stage are about one training, with one --domains K")
    if args.recipes and not args.domains:
        parser.error("--recipes requires numbers of domains, such as --domains 2 5 20")
    return args, configure(training_options, "stargan_dist.memory")[0]


def costs_asked(args: argparse.Namespace) -> bool:
    """Return whether costs in sum over all trainings are to be printed."""
    return len(args.domains) > 1 or bool(args.recipes)


def read_labels(config: Config) -> Labels:
    """Read the labels of a configuration's data.

    Raises:
        UserError: they cannot be read.
    """
    storage.configure(config.storage)
    try:
        return open_sources(config.data, "train").labels
    except UserError as error:
        raise UserError(f"{error} (or give the number of domains: --domains K)") from error


def table(estimates: Mapping[str, Memory]) -> str:
    """Format one row per engine, or, for a single engine, one row per part."""
    large = max(memory.total for memory in estimates.values()) >= 2**30
    unit, unit_bytes = ("GiB", 2**30) if large else ("MiB", 2**20)
    lines = [[f"{unit} per GPU", *Memory._fields, "total"]]
    for name, memory in estimates.items():
        sizes = memory.rows().values()
        lines.append([name, *(f"{size / unit_bytes:.2f}" for size in sizes)])
    return format_table(lines if len(estimates) > 1 else zip(*lines, strict=True), left=[0])


def table_of_costs(costs: Sequence[DomainCosts]) -> str:
    """Format a line for each recipe and number of domains."""
    unit = "GiB of weights and Adam's moments"
    lines = [["recipe", "domains", "trainings", "parameters", "of these to translate", unit]]
    for recipe, domains, runs, trained, translating, state_bytes in costs:
        millions = [f"{count / 1e6:.1f} M" for count in (trained, translating)]
        lines.append([recipe, str(domains), str(runs), *millions, f"{state_bytes / 2**30:.2f}"])
    return format_table(lines, left=[0])


def print_costs(config: Config, args: argparse.Namespace) -> None:
    """Print the costs of recipes for numbers of domains, in sum over all trainings."""
    recipes = args.recipes or [config.recipe]
    costs = [domain_costs(config, recipe, k) for recipe in recipes for k in args.domains]
    if args.json:
        print(json.dumps([of_one._asdict() for of_one in costs]))
        return
    print(f"{config.model.image_size} px, {config.precision}, in sum over all trainings\n")
    print(table_of_costs(costs))


def print_memory(config: Config, args: argparse.Namespace) -> None:
    """Print the memory per GPU of a training."""
    processes = args.processes or 1
    names = [str(label) for count in args.domains for label in range(count)]
    labels = domain_labels(names) if names else read_labels(config)
    stages = range(len(ENGINES)) if args.zero_stage is None else [args.zero_stage]
    estimates = estimate_engines(config, labels, processes, stages)
    if args.json:
        print(json.dumps({name: memory.rows() for name, memory in estimates.items()}))
        return
    kind = "domains" if labels.by_domain else "labels"
    print(
        f"{labels.num_labels} {kind}, {config.model.image_size} px, {config.precision}, "
        f"processes: {processes}, batch per process: {config.batch_size // processes}\n"
    )
    print(table(estimates), NOTES, sep="\n\n")


def main() -> None:
    args, config = parse_args()
    (print_costs if costs_asked(args) else print_memory)(config, args)


if __name__ == "__main__":
    run_command(main)
