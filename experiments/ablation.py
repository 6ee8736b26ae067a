"""Trains the rows of the StarGAN v2 paper's ablation on the drawn animals, and compares them.

    python experiments/ablation.py [--rows a b c d e f] [--seeds 3] [--out build/ablation]

Every run sees as many images, and the rows of a seed have the same order of samples. All rows of
seed 0 come first, then those of seed 1, and so on. After each run OUT/table.md, OUT/table.json and
OUT/picture.png are written anew. The same command goes on where an interrupted one ended: what is
trained and judged is kept in OUT/ROW/seed_N, the judge's figures in judge.json there.

Measured are the distance and diversity of the protocol `demo`, and what the judge of the demo
(demo_quality.py) says of latent-guided translations: the share of the target species, how far the
head moved, and the spread of fur colours over that of real animals. A row whose translations
references guide has its distance and share by those as well.
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
from sheets import across, sheet

from stargan_dist.console.progress import clock
from stargan_dist.data.batch import to_unit
from stargan_dist.data.index import read_index
from stargan_dist.data.order import seeded_rng
from stargan_dist.data.reader import LoadedSplit, ShardReader, load_split
from stargan_dist.errors import UserError, run_command
from stargan_dist.inference.translator import Translator
from stargan_dist.runs import scores

SHARDS = "build/demo/shards"
STEPS = 600  # as in configs/ablation/demo.yaml: 18 runs in 90 minutes on two CPU cores
PROTOCOL = "demo"
JUDGED = "judge.json"  # in the folder of a run: what one run adds to the table
PICTURE_SOURCES, PICTURE_LATENTS = 2, 3


class Run(NamedTuple):
    """One training of a row."""

    row: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"row {self.row}, seed {self.seed}"


# What is to be done, and what has been.


def schedule(rows: Sequence[str], seeds: int, out: Path) -> list[Run]:
    """All runs, those of one seed together."""
    return [
        Run(row, seed, out / row / f"seed_{seed}") for seed in range(seeds) for row in rows
    ]  # fmt: skip


def judged(run: Run, steps: int) -> Figures | None:
    """The figures of a run that is trained for so many steps and judged."""
    try:
        figures = json.loads((run.folder / JUDGED).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return figures if figures["steps"] == steps else None


def remaining(runs: Sequence[Run], steps: int) -> list[Run]:
    """The runs that are not trained or not judged."""
    return [run for run in runs if judged(run, steps) is None]


def seconds_left(runs: Sequence[Run], steps: int) -> float | None:
    """An estimate for all remaining runs: each takes as long as others of its row, or as all.

    None as long as no run was timed from its beginning to its end.
    """
    timed: dict[str, list[float]] = {}
    for run in runs:
        figures = judged(run, steps)
        if figures is not None and figures["seconds"] is not None:
            timed.setdefault(run.row, []).append(figures["seconds"])
    if not timed:
        return None
    usual = statistics.fmean(value for values in timed.values() for value in values)
    means = {row: statistics.fmean(values) for row, values in timed.items()}
    return sum(means.get(run.row, usual) for run in remaining(runs, steps))


def announce(number: int, runs: Sequence[Run], run: Run, steps: int) -> None:
    """Say which run of how many begins, and how long all that are left will take."""
    left = seconds_left(runs, steps)
    eta = "not known before a run has ended" if left is None else clock(left)
    told = f"run {number} of {len(runs)}: {run.name}; all will be done in: {eta}"
    print(f"\n== {told}", flush=True)


# One run.


def options_of(run: Run, steps: int, shards: str) -> list[str]:
    """The training's command line: the row's own file, then what all have in common."""
    files = [row_file(run.row), CONFIGS / "ablation" / "demo.yaml"]
    own = {
        "run": run.folder, "seed": run.seed, "steps": steps, "loss.ds_iter": steps,
        "data.shards": shards, "evaluation.every": steps, "evaluation.protocol": PROTOCOL,
    }  # fmt: skip
    given = [str(part) for name, value in own.items() for part in (f"--{name}", value)]
    return [part for file in files for part in ("--config", str(file))] + given


def row_file(row: str) -> Path:
    """Where a row's configuration lies."""
    return CONFIGS / "ablation" / f"{row}.yaml"


def evaluated(run: Run, steps: int) -> scores.Result:
    """The evaluation that the training ended with."""
    for result in scores.complete_results(str(run.folder)):
        if (result["protocol"], result["step"], result["seed"]) == (PROTOCOL, steps, 0):
            return result
    raise UserError(f"{run.folder} has no complete evaluation of step {steps}")


def figures_of(result: scores.Result, measures: dict[str, float]) -> Figures:
    """The columns of the table, from an evaluation and from what the judge says.

    Those by references are of rows that references guide; others are not measured by them.
    """
    means, by_reference = result["means"], measures.get("domain_accuracy_reference")
    found = {
        "demo_fid": means["demo_fid_latent"],
        "diversity": means["demo_lpips_latent"],
        "accuracy": measures["domain_accuracy_latent"],
        "pose_px": measures["pose_error_latent_px"],
        "spread": measures["style_spread_ratio"],
        "demo_fid_reference": None if by_reference is None else means["demo_fid_reference"],
        "accuracy_reference": by_reference,
    }
    return {name: value for name, value in found.items() if value is not None}


@cache
def judges(shards: str, size: int) -> tuple[Any, Any]:
    """The demo's judge, the same for all runs; it takes a minute to train."""
    torch.manual_seed(0)
    return prepare(shards, size)


def look_at(run: Run, steps: int, shards: str) -> Figures:
    """Judge a trained run."""
    translator = Translator.load(str(run.folder))
    probes, val = judges(shards, translator.config.model.image_size)
    torch.manual_seed(0)  # all runs are given the same sources and latents
    return figures_of(evaluated(run, steps), judge(translator, probes, val))


def perform(run: Run, steps: int, shards: str, processes: int) -> Figures:
    """Train a run, or go on with it, judge it, and keep the figures."""
    fresh, began = not run.folder.exists(), time.monotonic()
    train(options_of(run, steps, shards), processes)
    found = look_at(run, steps, shards)
    seconds = time.monotonic() - began if fresh else None  # of a resumed run only a part is known
    figures = {"row": run.row, "seed": run.seed, "steps": steps, "seconds": seconds, **found}
    write(run.folder / JUDGED, json.dumps(figures, indent=1).encode())
    return figures


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    partial.rename(path)


# The picture.


def outputs(translator: Translator, x: torch.Tensor) -> torch.Tensor:
    """Cells (S, 1 + domains · latents, …) of sources (S, …): the latents are always the same."""
    domains, latent_dim = len(translator.domains), translator.config.model.latent_dim
    drawn = seeded_rng(0, "ablation").standard_normal((domains * PICTURE_LATENTS, latent_dim))
    z = torch.from_numpy(drawn).to(x).repeat(len(x), 1)
    y_trg = torch.arange(domains).repeat_interleave(PICTURE_LATENTS).repeat(len(x))
    return across(x, translator.from_latents(x, y_trg, z))


def picture(translators: dict[str, Translator], sources: LoadedSplit) -> Image.Image:
    """A block for each row: sources, and each of them in every domain."""
    x = to_unit(sources.images, torch.float32)
    blocks = {title(row): outputs(translator, x) for row, translator in translators.items()}
    header = [name if i == 0 else "" for name in sources.domains for i in range(PICTURE_LATENTS)]
    return sheet(blocks, ["source", *header])


def picture_of(runs: Sequence[Run], shards: str) -> Image.Image:
    """The picture of finished runs of one seed."""
    translators = {run.row: Translator.load(str(run.folder)) for run in runs}
    size = next(iter(translators.values())).config.model.image_size
    reader = ShardReader(shards, read_index(shards), "val")
    found = load_split(reader, size, per_domain=1)
    few = LoadedSplit(found.images[:PICTURE_SOURCES], found.labels, found.paths, found.domains)
    return picture(translators, few)


# All of it.


def report(runs: Sequence[Run], steps: int, shards: str, out: Path) -> str:
    """Write table and picture of all that is done. Returns the table and what it shows."""
    rows = list(dict.fromkeys(run.row for run in runs))
    done = [(run, figures) for run in runs if (figures := judged(run, steps)) is not None]
    found = [figures for _, figures in done]
    lines = order_lines(found)
    text = "\n".join([table(found, rows), "", *(f"- {line}" for line in lines)]) + "\n"
    write(out / "table.md", text.encode())
    kept = {"steps": steps, "runs": found, "order": lines}
    write(out / "table.json", json.dumps(kept, indent=1, ensure_ascii=False).encode())
    first = [run for run, _ in done if run.seed == 0]
    if first:
        picture_of(first, shards).save(out / "picture.png")
    return text


def work(
    runs: Sequence[Run],
    steps: int,
    do: Callable[[Run], object],
    after: Callable[[], object],
) -> None:
    """Do what is left, run by run, and something after each."""
    for run in remaining(runs, steps):
        announce(runs.index(run) + 1, runs, run, steps)
        do(run)
        after()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="names of recipes")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run")
    parser.add_argument("--out", type=Path, default=Path("build/ablation"))
    parser.add_argument("--shards", default=SHARDS, help="the drawn animals")
    parser.add_argument("--processes", type=int, default=default_processes())
    args = parser.parse_args(argv)
    if min(args.seeds, args.steps, args.processes) < 1:
        parser.error("--seeds, --steps and --processes must be at least 1")
    for row in args.rows:
        if not row_file(row).is_file():
            parser.error(f"--rows: no {row_file(row)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train, judge and compare."""
    args = parse(argv)
    read_index(args.shards)  # before anything else is begun
    runs = schedule(args.rows, args.seeds, args.out)

    def do(run: Run) -> None:
        perform(run, args.steps, args.shards, args.processes)

    def after() -> None:
        print(report(runs, args.steps, args.shards, args.out), flush=True)

    if not remaining(runs, args.steps):
        after()
    work(runs, args.steps, do, after)
    print(f"written to {args.out}: table.md, table.json, picture.png")


if __name__ == "__main__":
    run_command(main)
