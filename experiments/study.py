"""Studies: rows of a table, each trained with several seeds, measured and compared.

A study trains all rows with seed 0 first, then all with seed 1, and so on. Runs are kept in
OUT/ROW/seed_N, with the figures of each in judge.json there. The report is written anew after each
run. The same command resumes an interrupted study: finished runs are neither trained nor judged
again. Started several times at once on one machine, the command shares the runs out.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from demo_quality import judge, prepare
from filelock import FileLock, Timeout
from launching import default_processes, train

from stargan_dist.console.progress import clock
from stargan_dist.errors import UserError
from stargan_dist.inference.model import TrainedModel
from stargan_dist.runs import scores

SHARDS = "build/demo/shards"
PROTOCOL = "demo"
FIGURES_FILE = "judge.json"  # in the folder of a run

Figures = dict[str, Any]  # of one run: row, seed, steps, seconds, and what was measured


class Run(NamedTuple):
    """One training of a row."""

    row: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """The run in words."""
        return f"row {self.row}, seed {self.seed}"


# Which runs are left.


def list_runs(rows: Sequence[str], seeds: int, out: Path) -> list[Run]:
    """Return all runs, ordered by seed."""
    return [
        Run(row, seed, out / row / f"seed_{seed}") for seed in range(seeds) for row in rows
    ]  # fmt: skip


def read_figures(run: Run, steps: int) -> Figures | None:
    """Read the figures of a run; None if it is not yet trained for `steps` steps and judged."""
    try:
        figures: Figures = json.loads((run.folder / FIGURES_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return figures if figures["steps"] == steps else None


def finished(runs: Sequence[Run], steps: int) -> dict[Run, Figures]:
    """Return the figures of the runs that are trained and judged."""
    figures = {run: read_figures(run, steps) for run in runs}
    return {run: of_run for run, of_run in figures.items() if of_run is not None}


def remaining(runs: Sequence[Run], steps: int) -> list[Run]:
    """Return the runs that are not yet trained and judged."""
    done = finished(runs, steps)
    return [run for run in runs if run not in done]


def seconds_left(runs: Sequence[Run], steps: int) -> float | None:
    """Estimate the seconds that all remaining runs will take.

    A run is expected to take the mean time of the finished runs of its row, or else of all finished
    runs. None if no run has been timed from beginning to end.
    """
    seconds: dict[str, list[float]] = {}
    for run, figures in finished(runs, steps).items():
        if figures["seconds"] is not None:
            seconds.setdefault(run.row, []).append(figures["seconds"])
    if not seconds:
        return None
    mean = statistics.fmean(value for values in seconds.values() for value in values)
    row_means = {row: statistics.fmean(values) for row, values in seconds.items()}
    return sum(row_means.get(run.row, mean) for run in remaining(runs, steps))


def announce(number: int, runs: Sequence[Run], run: Run, steps: int) -> None:
    """Print which run begins, of how many, and the estimated time for all remaining runs."""
    left = seconds_left(runs, steps)
    eta = "known after the first run" if left is None else clock(left)
    print(f"\n== run {number} of {len(runs)}: {run.name}; eta of all runs: {eta}", flush=True)


# One run.


def command_line(files: Sequence[Path], settings: Mapping[str, object]) -> list[str]:
    """Return options of `stargan_dist.train`: configuration files, then settings by name."""
    configs = [part for file in files for part in ("--config", str(file))]
    return configs + [
        str(part) for name, value in settings.items() for part in (f"--{name}", value)
    ]


def find_evaluation(run: Run, step: int) -> scores.Result | None:
    """Return the evaluation of a checkpoint by the protocol `demo`; None if it has none."""
    for result in scores.complete_results(str(run.folder)):
        if (result["protocol"], result["step"], result["seed"]) == (PROTOCOL, step, 0):
            return result
    return None


def find_last_evaluation(run: Run, steps: int) -> scores.Result:
    """Return the evaluation at the end of the training.

    Raises:
        UserError: the run has none.
    """
    result = find_evaluation(run, steps)
    if result is None:
        raise UserError(
            f"{run.folder} has no complete evaluation of step {steps}: evaluate it with "
            f"`python -m stargan_dist.evaluate --run {run.folder} --checkpoint {steps} "
            f"--protocol {PROTOCOL}`, then run the same command again"
        )
    return result


@cache
def prepare_once(shards: str, size: int) -> tuple[Any, Any]:
    """Prepare the demo's judge, which takes a minute to train, once for all runs."""
    torch.manual_seed(0)
    return prepare(shards, size)


def judge_checkpoint(run: Run, step: int, shards: str) -> dict[str, float]:
    """Return the measures of the demo's judge for a checkpoint."""
    translator = TrainedModel.load(str(run.folder), str(step))
    probes, val = prepare_once(shards, translator.config.model.image_size)
    torch.manual_seed(0)  # the same sources and latents for all runs
    return judge(translator, probes, val)


def perform(
    run: Run, steps: int, options: Sequence[str], processes: int, measure: Callable[[Run], Figures]
) -> Figures:
    """Train a run, or resume it, measure it, and save its figures."""
    fresh, start = not run.folder.exists(), time.monotonic()
    train(options, processes)
    measured = measure(run)
    seconds = time.monotonic() - start if fresh else None  # a resumed run is timed only in part
    figures = {"row": run.row, "seed": run.seed, "steps": steps, "seconds": seconds, **measured}
    write_json(run.folder / FIGURES_FILE, figures)
    return figures


# All runs.


@contextmanager
def claimed(run: Run) -> Iterator[bool]:
    """Yield True if no other process of this machine performs the run, and keep others from it."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.folder.parent / f".{run.folder.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def perform_remaining(
    runs: Sequence[Run],
    steps: int,
    perform_run: Callable[[Run], object],
    after_run: Callable[[], object],
) -> None:
    """Perform the remaining runs one by one, and call `after_run` after each.

    Runs that another process performs are left to it.
    """
    for run in remaining(runs, steps):
        with claimed(run) as mine:
            if mine and remaining([run], steps):  # another process may have finished it meanwhile
                announce(runs.index(run) + 1, runs, run, steps)
                perform_run(run)
                after_run()


def conduct(
    runs: Sequence[Run],
    args: argparse.Namespace,
    options: Callable[[Run], Sequence[str]],
    measure: Callable[[Run], Figures],
    report: Callable[[], str],
    most_processes: Callable[[Run], int] = lambda run: sys.maxsize,
) -> None:
    """Perform the remaining runs of a study, and print its report after each.

    Args:
        runs: all of them.
        args: with the options of `add_options`.
        options: returns the command line of a run's training.
        measure: judges a trained run.
        report: writes the results of all finished runs, and returns them as text.
        most_processes: returns how many processes can share a run's batch (default: any number).
    """

    def perform_run(run: Run) -> None:
        processes = min(args.processes, most_processes(run))
        perform(run, args.steps, options(run), processes, measure)

    def print_report() -> None:
        print(report(), flush=True)

    if not remaining(runs, args.steps):
        print_report()
    perform_remaining(runs, args.steps, perform_run, print_report)


def add_options(parser: argparse.ArgumentParser, seeds: int, steps: int, out: str) -> None:
    """Add the options of every study to a parser, with these defaults."""
    parser.add_argument(
        "--seeds", type=int, default=seeds, help=f"runs of each row (default: {seeds})"
    )
    parser.add_argument(
        "--steps", type=int, default=steps, help=f"steps of each run (default: {steps})"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(out), help=f"folder for runs and results (default: {out})"
    )
    parser.add_argument(
        "--shards", default=SHARDS, help=f"shards of the drawn animals (default: {SHARDS})"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=default_processes(),
        help="processes of each training (default: 2 on CPUs; one per GPU, a power of two up to 8)",
    )


def parse_options(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line with the options of `add_options`, and check these."""
    args = parser.parse_args(argv)
    if min(args.seeds, args.steps, args.processes) < 1:
        parser.error("--seeds, --steps and --processes must be at least 1")
    return args


# Files.


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.rename(path)


def write_json(path: Path, content: object) -> None:
    """Write JSON completely or not at all."""
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
