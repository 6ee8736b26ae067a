"""Train the rows of the StarGAN v2 paper's ablation on the drawn animals, and compare them.

    python experiments/ablation.py [--rows a b c d e f] [--seeds 3] [--out build/ablation]

A row is a configuration of the paper's ablation table, trained as the recipe of that name. Every
run sees as many images, and the rows of one seed see the same samples in the same order. All rows
of seed 0 are trained first, then those of seed 1, and so on. After each run OUT/table.md,
OUT/table.json and OUT/picture.png are written anew.

The same command resumes an interrupted experiment. Runs are kept in OUT/ROW/seed_N, with the
figures of each in judge.json there.

The figures are distance and diversity by the protocol `demo`, and measures of latent-guided
translations by the judge of the demo (demo_quality.py): the share with the target species, how far
the head moved, and the spread of fur colours over that of real animals. Rows guided by references
have distance and share of reference-guided translations as well.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ablation_table import ROWS, Figures, order_lines, table, title
from demo_quality import judge, prepare
from launching import CONFIGS, default_processes, train
from PIL import Image
from sheets import rows_of_outputs, sheet

from stargan_dist.console.progress import clock
from stargan_dist.data.batch import to_unit
from stargan_dist.data.index import read_index
from stargan_dist.data.order import seeded_rng
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.split import LoadedSplit, load_split
from stargan_dist.errors import UserError, run_command
from stargan_dist.inference.model import TrainedModel
from stargan_dist.runs import scores

SHARDS = "build/demo/shards"
STEPS = 600  # as in configs/ablation/demo.yaml: 18 runs in 90 minutes on two CPU cores
PROTOCOL = "demo"
FIGURES_FILE = "judge.json"  # in the folder of a run
GRID_SOURCES, GRID_LATENTS = 2, 3  # of the image grid


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


def schedule(rows: Sequence[str], seeds: int, out: Path) -> list[Run]:
    """Return all runs, ordered by seed."""
    return [
        Run(row, seed, out / row / f"seed_{seed}") for seed in range(seeds) for row in rows
    ]  # fmt: skip


def read_figures(run: Run, steps: int) -> Figures | None:
    """Read the figures of a run; None if it is not yet trained for `steps` steps and judged."""
    try:
        figures = json.loads((run.folder / FIGURES_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return figures if figures["steps"] == steps else None


def remaining(runs: Sequence[Run], steps: int) -> list[Run]:
    """Return the runs that are not yet trained and judged."""
    return [run for run in runs if read_figures(run, steps) is None]


def seconds_left(runs: Sequence[Run], steps: int) -> float | None:
    """Estimate the seconds that all remaining runs will take.

    A run is expected to take the mean time of the finished runs of its row, or else of all finished
    runs. None if no run has been timed from beginning to end.
    """
    seconds: dict[str, list[float]] = {}
    for run in runs:
        figures = read_figures(run, steps)
        if figures is not None and figures["seconds"] is not None:
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


def training_options(run: Run, steps: int, shards: str) -> list[str]:
    """Return the training's command line: the row's own file, then what all rows share."""
    files = [row_config(run.row), CONFIGS / "ablation" / "demo.yaml"]
    settings = {
        "run": run.folder, "seed": run.seed, "steps": steps, "loss.ds_iter": steps,
        "data.shards": shards, "evaluation.every": steps, "evaluation.protocol": PROTOCOL,
    }  # fmt: skip
    configs = [part for file in files for part in ("--config", str(file))]
    return configs + [
        str(part) for name, value in settings.items() for part in (f"--{name}", value)
    ]


def row_config(row: str) -> Path:
    """Return the path of a row's configuration."""
    return CONFIGS / "ablation" / f"{row}.yaml"


def find_evaluation(run: Run, steps: int) -> scores.Result:
    """Return the evaluation at the end of the training.

    Raises:
        UserError: the run has none.
    """
    for result in scores.complete_results(str(run.folder)):
        if (result["protocol"], result["step"], result["seed"]) == (PROTOCOL, steps, 0):
            return result
    raise UserError(
        f"{run.folder} has no complete evaluation of step {steps}: evaluate it with "
        f"`python -m stargan_dist.evaluate --run {run.folder} --checkpoint {steps} "
        f"--protocol {PROTOCOL}`, then run the same command again"
    )


def combine_figures(result: scores.Result, measures: dict[str, float]) -> Figures:
    """Return the columns of the table, from an evaluation and the judge's measures.

    Columns by reference are left out for rows that references do not guide: the judge has no
    measures of them.
    """
    means, accuracy_reference = result["means"], measures.get("domain_accuracy_reference")
    figures = {
        "demo_fid": means["demo_fid_latent"],
        "diversity": means["demo_lpips_latent"],
        "accuracy": measures["domain_accuracy_latent"],
        "pose_px": measures["pose_error_latent_px"],
        "spread": measures["style_spread_ratio"],
        "demo_fid_reference": None if accuracy_reference is None else means["demo_fid_reference"],
        "accuracy_reference": accuracy_reference,
    }
    return {name: value for name, value in figures.items() if value is not None}


@cache
def prepare_once(shards: str, size: int) -> tuple[Any, Any]:
    """Prepare the demo's judge, which takes a minute to train, once for all runs."""
    torch.manual_seed(0)
    return prepare(shards, size)


def judge_run(run: Run, steps: int, shards: str) -> Figures:
    """Judge a trained run."""
    translator = TrainedModel.load(str(run.folder))
    probes, val = prepare_once(shards, translator.config.model.image_size)
    torch.manual_seed(0)  # the same sources and latents for all runs
    return combine_figures(find_evaluation(run, steps), judge(translator, probes, val))


def perform(run: Run, steps: int, shards: str, processes: int) -> Figures:
    """Train a run, or resume it, judge it, and save its figures."""
    fresh, start = not run.folder.exists(), time.monotonic()
    train(training_options(run, steps, shards), processes)
    measured = judge_run(run, steps, shards)
    seconds = time.monotonic() - start if fresh else None  # a resumed run is timed only in part
    figures = {"row": run.row, "seed": run.seed, "steps": steps, "seconds": seconds, **measured}
    write_atomically(run.folder / FIGURES_FILE, json.dumps(figures, indent=1).encode())
    return figures


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.rename(path)


# The image grid.


def translate_all(translator: TrainedModel, x: torch.Tensor) -> torch.Tensor:
    """Translate sources (S, 3, H, H) into every domain, by the same latents for each source.

    Returns:
        Sources and outputs, (S, 1 + domains · GRID_LATENTS, 3, H, H).
    """
    domains, latent_dim = len(translator.domains), translator.config.model.latent_dim
    latents = seeded_rng(0, "ablation").standard_normal((domains * GRID_LATENTS, latent_dim))
    z = torch.from_numpy(latents).to(x).repeat(len(x), 1)
    y_trg = torch.arange(domains).repeat_interleave(GRID_LATENTS).repeat(len(x))
    return rows_of_outputs(x, translator.from_latents(x, y_trg, z))


def image_grid(translators: dict[str, TrainedModel], sources: LoadedSplit) -> Image.Image:
    """Draw a block for each row of the ablation: the sources, and each of them in every domain."""
    x = to_unit(sources.images, torch.float32)
    blocks = {title(row): translate_all(translator, x) for row, translator in translators.items()}
    header = [name if i == 0 else "" for name in sources.domains for i in range(GRID_LATENTS)]
    return sheet(blocks, ["source", *header])


def image_grid_of_runs(runs: Sequence[Run], shards: str) -> Image.Image:
    """Draw the image grid of finished runs of one seed."""
    translators = {run.row: TrainedModel.load(str(run.folder)) for run in runs}
    size = next(iter(translators.values())).config.model.image_size
    split = load_split(ShardReader(shards, read_index(shards), "val"), size, per_domain=1)
    sources = LoadedSplit(split.images[:GRID_SOURCES], split.labels, split.paths, split.domains)
    return image_grid(translators, sources)


# The experiment.


def report(runs: Sequence[Run], steps: int, shards: str, out: Path) -> str:
    """Write the table and the image grid of all finished runs; returns the table as text."""
    rows = list(dict.fromkeys(run.row for run in runs))
    finished = [(run, figures) for run in runs if (figures := read_figures(run, steps)) is not None]
    figures_of_runs = [figures for _, figures in finished]
    lines = order_lines(figures_of_runs)
    text = "\n".join([table(figures_of_runs, rows), "", *(f"- {line}" for line in lines)]) + "\n"
    write_atomically(out / "table.md", text.encode())
    content = {"steps": steps, "runs": figures_of_runs, "order": lines}
    write_atomically(
        out / "table.json", json.dumps(content, indent=1, ensure_ascii=False).encode()
    )  # fmt: skip
    first_seed = [run for run, _ in finished if run.seed == 0]
    if first_seed:
        image_grid_of_runs(first_seed, shards).save(out / "picture.png")
    return text


def perform_remaining(
    runs: Sequence[Run],
    steps: int,
    perform_run: Callable[[Run], object],
    after_run: Callable[[], object],
) -> None:
    """Perform the remaining runs one by one, and call `after_run` after each."""
    for run in remaining(runs, steps):
        announce(runs.index(run) + 1, runs, run, steps)
        perform_run(run)
        after_run()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), help="names of recipes (default: a to f)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default: 3)")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"steps of each run (default: {STEPS})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/ablation"),
        help="folder for runs and results (default: build/ablation)",
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
    args = parser.parse_args(argv)
    if min(args.seeds, args.steps, args.processes) < 1:
        parser.error("--seeds, --steps and --processes must be at least 1")
    for row in args.rows:
        if not row_config(row).is_file():
            parser.error(f"--rows: {row} has no configuration {row_config(row)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train, judge and compare."""
    args = parse(argv)
    read_index(args.shards)  # fails early if there are no shards
    runs = schedule(args.rows, args.seeds, args.out)

    def perform_run(run: Run) -> None:
        perform(run, args.steps, args.shards, args.processes)

    def print_report() -> None:
        print(report(runs, args.steps, args.shards, args.out), flush=True)

    if not remaining(runs, args.steps):
        print_report()
    perform_remaining(runs, args.steps, perform_run, print_report)
    print(f"written to {args.out}: table.md, table.json, picture.png")


if __name__ == "__main__":
    run_command(main)
