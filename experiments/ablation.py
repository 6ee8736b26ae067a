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
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from ablation_table import ROWS, order_lines, table, title
from launching import CONFIGS
from PIL import Image
from sheets import rows_of_outputs, sheet
from study import (
    PROTOCOL,
    Figures,
    Run,
    add_options,
    command_line,
    conduct,
    find_last_evaluation,
    finished,
    judge_checkpoint,
    list_runs,
    parse_options,
    write_atomically,
    write_json,
)

from stargan_dist.data.batch import to_unit
from stargan_dist.data.index import read_index
from stargan_dist.data.order import seeded_rng
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.split import LoadedSplit, load_split
from stargan_dist.errors import run_command
from stargan_dist.inference.model import TrainedModel
from stargan_dist.runs import scores

STEPS = 600  # as in configs/ablation/demo.yaml: 18 runs in 90 minutes on two CPU cores
GRID_SOURCES, GRID_LATENTS = 2, 3  # of the image grid


# One run.


def training_options(run: Run, steps: int, shards: str) -> list[str]:
    """Return the training's command line: the row's own file, then what all rows share."""
    files = [row_config(run.row), CONFIGS / "ablation" / "demo.yaml"]
    settings = {
        "run": run.folder, "seed": run.seed, "steps": steps, "loss.ds_iter": steps,
        "data.shards": shards, "evaluation.every": steps, "evaluation.protocol": PROTOCOL,
    }  # fmt: skip
    return command_line(files, settings)


def row_config(row: str) -> Path:
    """Return the path of a row's configuration."""
    return CONFIGS / "ablation" / f"{row}.yaml"


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


def judge_run(run: Run, steps: int, shards: str) -> Figures:
    """Judge a trained run."""
    return combine_figures(find_last_evaluation(run, steps), judge_checkpoint(run, steps, shards))


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
    by_run = finished(runs, steps)
    figures = list(by_run.values())
    lines = order_lines(figures)
    text = "\n".join([table(figures, rows), "", *(f"- {line}" for line in lines)]) + "\n"
    write_atomically(out / "table.md", text.encode())
    write_json(out / "table.json", {"steps": steps, "runs": figures, "order": lines})
    first_seed = [run for run in by_run if run.seed == 0]
    if first_seed:
        image_grid_of_runs(first_seed, shards).save(out / "picture.png")
    return text


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), help="names of recipes (default: a to f)"
    )
    add_options(parser, seeds=3, steps=STEPS, out="build/ablation")
    args = parse_options(parser, argv)
    for row in args.rows:
        if not row_config(row).is_file():
            parser.error(f"--rows: {row} has no configuration {row_config(row)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train, judge and compare."""
    args = parse(argv)
    read_index(args.shards)  # fails early if there are no shards
    runs = list_runs(args.rows, args.seeds, args.out)
    conduct(
        runs,
        args,
        partial(training_options, steps=args.steps, shards=args.shards),
        partial(judge_run, steps=args.steps, shards=args.shards),
        partial(report, runs, args.steps, args.shards, args.out),
    )
    print(f"written to {args.out}: table.md, table.json, picture.png")


if __name__ == "__main__":
    run_command(main)
