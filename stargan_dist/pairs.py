"""Command line: train a method between two domains on all pairs of K of them.

`python -m stargan_dist.pairs --config configs/comparison/cyclegan_afhq.yaml --run SET` trains the
K(K - 1)/2 pairs of the shards' domains one after the other, in SET/CAT-DOG and so on. It accepts
the options of `stargan_dist.train`, which trains each of them. Finished pairs are skipped, begun
ones are resumed: the same command continues. A pair that fails ends the plan.

`--list` prints the table of all pairs and trains none. `--index N` trains the pair of this number
alone, in this process: it may be started by any launcher, and is what a task of a Slurm job array
runs. `python -m stargan_dist.evaluate --run SET` evaluates the pairs as one translator.

Exit codes: 0 all pairs are finished; otherwise that of the training that ended the plan.
"""

import os

# Before torch is imported: DDP warns on every rank about its first iteration.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import argparse
import json
import logging
from collections.abc import Sequence
from typing import Any

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.console.arguments import Parser, integer
from stargan_dist.console.logs import setup_logging
from stargan_dist.console.tables import format_table
from stargan_dist.errors import STOPPED, UserError, run_command
from stargan_dist.launch.children import Children, launcher
from stargan_dist.launch.launcher import launcher_hides_exit_codes, stop_with_launcher
from stargan_dist.launch.launcher_settings import take_settings
from stargan_dist.models import pairs
from stargan_dist.models.pairs import Pair
from stargan_dist.training.options import configure
from stargan_dist.training.pair_runs import (
    Progress,
    progress_of,
    read_domains,
    training_options,
)

PROGRAM = "stargan_dist.pairs"
logger = logging.getLogger(PROGRAM)  # __main__ has no handlers


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    """Return the own options, and those of the training."""
    parser = Parser(
        prog=f"python -m {PROGRAM}",
        description="Train a method between two domains on all pairs of the domains of the shards. "
        "The same command continues.",
        epilog="All other options are those of training, such as --config FILE: "
        "python -m stargan_dist.train --help explains them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--processes", type=integer(1), default=1, metavar="W",
        help="processes of each training (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--index", type=integer(0), metavar="N",
        help="train the pair of this number alone, in this process; with --list, print its steps",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the pairs, train none")
    parser.add_argument("--json", action="store_true", help="print the pairs as JSON, train none")
    return parser.parse_known_args()


# The plan.


def describe(of_set: Sequence[Progress], args: argparse.Namespace) -> str:
    """Return a plan, or a pair of it, as text."""
    if args.json:
        return json.dumps([row(progress) for progress in of_set], ensure_ascii=False)
    return table(of_set) if args.index is None else one_line(of_set[0])


def table(of_set: Sequence[Progress]) -> str:
    """Return a line for each pair."""
    lines = [["number", "pair", "run", "state"]]
    for progress in of_set:
        pair = progress.pair
        lines.append([str(pair.number), pair.name, pair.run, str(progress)])
    return format_table(lines, left=(1, 2, 3))


def one_line(progress: Progress) -> str:
    """Return the progress of a pair in the words of `stargan_dist.status`, for slurm/common.sh."""
    return f"{progress.step} of {progress.steps} steps saved in {progress.pair.run}"


def row(progress: Progress) -> dict[str, Any]:
    """Return the progress of a pair as plain values."""
    return {**progress.pair._asdict(), **progress._asdict(), "pair": progress.pair.name}


# Training.


def train_all(
    config: Config, of_set: Sequence[Progress], options: Sequence[str], processes: int
) -> int:
    """Train all pairs that are not finished. Return the exit code.

    Raises:
        UserError: a training failed. It has the exit code of the training.
    """
    start = [*launcher(processes), "-m", "stargan_dist.train", *options]
    with Children() as children:
        for pair in (progress.pair for progress in of_set if not progress.is_finished):
            logger.info("pair %d of %d: %s", pair.number + 1, len(of_set), pair.name)
            code = children.run([*start, *training_options(pair)])
            if code == STOPPED:
                logger.info("stopped: the same command continues with %s", pair.name)
                return code
            if code:
                raise UserError(
                    f"the training of {pair.name} failed with exit code {code} (see above), which "
                    "ends the plan: the same command continues with it; to train another pair, "
                    "give its number (--index, --list)",
                    code,
                )
    logger.info("all pairs are finished: python -m stargan_dist.evaluate --run %s", config.run)
    return 0


def train_one(pair: Pair, options: Sequence[str]) -> int:
    """Train a pair as `stargan_dist.train` does: this process is one of its ranks."""
    requests = take_settings(os.environ)
    config, origins = configure([*options, *training_options(pair)], PROGRAM, requests)
    from stargan_dist.training.trainer import train  # --help and user errors do not wait for it

    with origins.in_errors():
        return train(config, origins)


def check_not_launched() -> None:
    """Raise a UserError if this process is one of several ranks: each would train all pairs."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "pairs: start it without a launcher: it starts the processes of each training itself "
            "(--processes W); or give the number of one pair (--index N)"
        )


def select(of_set: Sequence[Pair], index: int | None) -> Sequence[Pair]:
    """Return the pair of a number alone; None: all.

    Raises:
        UserError: there is no pair of this number.
    """
    if index is not None and index >= len(of_set):
        raise UserError(f"--index: there is no pair {index}, the last one is {len(of_set) - 1}")
    return of_set if index is None else [of_set[index]]


def main() -> int:
    stop_with_launcher()
    setup_logging()
    args, options = parse_args()
    config, _ = configure(options, PROGRAM, take_settings({**os.environ}))  # the training's own
    storage.configure(config.storage)
    domains = read_domains(config)
    selected = select(pairs.list_pairs(config.run, domains), args.index)
    if args.list or args.json:
        print(describe(progress_of(config, selected), args))
        return 0
    if os.environ.get("RANK", "0") == "0":
        pairs.write_domains(config.run, domains)
    if args.index is not None:
        return train_one(selected[0], options)
    check_not_launched()
    return train_all(config, progress_of(config, selected), options, args.processes)


if __name__ == "__main__":
    run_command(main, launcher_hides_exit_codes)
