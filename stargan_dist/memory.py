"""Command line: memory per GPU of a configuration, before it is trained.

python -m stargan_dist.memory --config configs/afhq.yaml --domains 3 --processes 8
"""

import argparse
import json
from collections.abc import Mapping

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.console.tables import format_table
from stargan_dist.data.labels import Labels, domain_labels
from stargan_dist.data.sources import open_sources
from stargan_dist.errors import UserError, run_command
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
        "--domains", type=int, metavar="K", help="number of domains (default: as in the shards)"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="W", help="number of GPUs (default: 1)"
    )
    parser.add_argument(
        "--zero-stage", type=int, choices=range(4), help="0: DDP (default: print all stages)"
    )
    parser.add_argument("--json", action="store_true", help="print bytes as JSON, not a table")
    args, training_options = parser.parse_known_args()
    if args.processes < 1 or (args.domains is not None and args.domains < 1):
        parser.error("--processes and --domains must be at least 1")
    return args, configure(training_options, "stargan_dist.memory")[0]


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


def main() -> None:
    args, config = parse_args()
    count = args.domains
    labels = domain_labels([*map(str, range(count))]) if count else read_labels(config)
    stages = range(len(ENGINES)) if args.zero_stage is None else [args.zero_stage]
    estimates = estimate_engines(config, labels, args.processes, stages)
    if args.json:
        print(json.dumps({name: memory.rows() for name, memory in estimates.items()}))
        return
    kind = "domains" if labels.by_domain else "labels"
    print(
        f"{labels.num_labels} {kind}, {config.model.image_size} px, {config.precision}, "
        f"processes: {args.processes}, batch per process: {config.batch_size // args.processes}\n"
    )
    print(table(estimates), NOTES, sep="\n\n")


if __name__ == "__main__":
    run_command(main)
