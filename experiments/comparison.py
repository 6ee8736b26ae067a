"""Train the methods that the papers compare on the drawn animals, and compare them.

    python experiments/comparison.py [--methods stargan cyclegan munit drit msgan f] [--seeds 2]
        [--budgets images flops] [--out build/comparison]

StarGAN and StarGAN v2 translate between all species; the other methods train a run for each pair of
species. Under the budget `images`, every method sees as many images as StarGAN v2, which its pairs
divide among them; under `flops`, every method spends as many FLOPs as StarGAN v2 on its training,
and its images follow. Widths of the networks are those of the demo. Each method has the batch and
the schedule of its paper, shortened to the images that it sees, and a higher learning rate
(comparison_methods.py).

The measures are those of the ablation: distance and diversity by the protocol `demo`, and the judge
of the demo (demo_quality.py). A method between pairs has the means over its pairs, and the
parameters of all of them. FLOPs of a training and of a translation are counted by torch's formulas.

After each run OUT/table.md, OUT/table.json and OUT/picture.png are written anew. The same command
resumes an interrupted experiment. Runs are kept in OUT/BUDGET/METHOD/seed_N, those of pairs in
OUT/BUDGET/METHOD-SPECIES-SPECIES/seed_N.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from ablation import combine_figures
from comparison_methods import BUDGETS, METHODS, Plan, plan_of
from comparison_table import complete_rows, order_lines, table
from launching import CONFIGS
from PIL import Image
from sheets import sheet
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
from torch import Tensor

from stargan_dist.data.batch import to_unit
from stargan_dist.data.index import read_index
from stargan_dist.data.order import seeded_rng
from stargan_dist.data.reader import ShardReader
from stargan_dist.data.split import LoadedSplit, load_split
from stargan_dist.errors import run_command
from stargan_dist.inference.model import TrainedModel

STEPS = 300  # of StarGAN v2
LATENTS = 3  # of each target in the picture


# One run.


def training_options(run: Run, plan: Plan, shards: str) -> list[str]:
    """Return the training's command line: what all methods share, then the method's own."""
    part, steps = plan.parts[run.row], plan.steps(run.row)
    settings = {
        "run": run.folder, "seed": run.seed, "recipe": part.method, "steps": steps,
        "data.shards": shards, "checkpoint.every": steps, "monitor.log_every": max(steps // 10, 1),
        "evaluation.every": steps, "evaluation.protocol": PROTOCOL,
        **part.settings(steps),
    }  # fmt: skip
    return command_line([CONFIGS / "comparison" / "demo.yaml"], settings)


def judge_run(run: Run, plan: Plan, shards: str) -> Figures:
    """Judge a trained run."""
    steps = plan.steps(run.row)
    figures = combine_figures(
        find_last_evaluation(run, steps), judge_checkpoint(run, steps, shards)
    )
    return figures | {"images": plan.images(run.row)}


# The picture.


def translate_row(models: Sequence[TrainedModel], sources: LoadedSplit, number: int) -> Tensor:
    """Translate a source into every species by the same latents, with the model that knows both.

    Returns:
        The source and its translations, (1 + domains · LATENTS, 3, H, H); white where no model
        translates, from the source's species to itself.
    """
    x = to_unit(sources.images[number : number + 1], torch.float32)
    species = sources.domains[int(sources.labels[number])]
    cells = [x]
    for target in sources.domains:
        able = [m for m in models if {species, target} <= set(m.domains)]
        able = able if target != species or len(models) == 1 else []
        cells.append(translate(able[0], x, target) if able else x.new_ones(LATENTS, *x.shape[1:]))
    return torch.cat(cells)


def translate(model: TrainedModel, x: Tensor, target: str) -> Tensor:
    """Translate a source (1, 3, H, H) with each of LATENTS latents."""
    latents = seeded_rng(0, "comparison").standard_normal((LATENTS, model.config.model.latent_dim))
    y_trg = torch.full((LATENTS,), model.domains.index(target))
    return model.from_latents(x, y_trg, torch.from_numpy(latents).to(x))


def picture(runs: Sequence[Run], plan: Plan, shards: str) -> Image.Image:
    """Draw a block for each method: a source of each of two species in every species."""
    models: dict[str, list[TrainedModel]] = {}
    for run in runs:
        models.setdefault(plan.parts[run.row].method, []).append(TrainedModel.load(str(run.folder)))
    size = next(iter(models.values()))[0].config.model.image_size
    sources = load_split(ShardReader(shards, read_index(shards), "val"), size, per_domain=1)
    blocks = {
        METHODS[method].title: torch.stack([translate_row(of, sources, n) for n in (0, 1)])
        for method, of in models.items()
    }
    header = [name if i == 0 else "" for name in sources.domains for i in range(LATENTS)]
    return sheet(blocks, ["source", *header])


# The experiment.


def report(runs: Sequence[Run], plan: Plan, budget_steps: int, shards: str, out: Path) -> str:
    """Write tables and picture of what is finished; returns the tables as text."""
    by_run = finished(runs, budget_steps)
    rows = complete_rows(list(by_run.values()), plan)
    sections = []
    for budget in plan.budgets:
        lines = order_lines(rows[budget])
        sections += [f"{BUDGETS[budget]}:", "", table(rows[budget], plan, budget), ""]
        sections += [*(f"- {line}" for line in lines), ""]
    text = "\n".join(sections)
    write_atomically(out / "table.md", text.encode())
    write_json(
        out / "table.json", {"steps": budget_steps, "rows": rows, "runs": [*by_run.values()]}
    )
    first = plan.budgets[0]
    whole = [row["row"] for row in rows[first] if row["seed"] == 0]
    rows_shown = {row for method in whole for row in plan.parts_of(method, first)}
    shown = [run for run in by_run if run.seed == 0 and run.row in rows_shown]
    if shown:
        picture(shown, plan, shards).save(out / "picture.png")
    return text


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD",
        help=f"some of {', '.join(METHODS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--budgets", nargs="+", default=[*BUDGETS], choices=BUDGETS, metavar="BUDGET",
        help="images, flops: what is equal for all methods (default: both, one after the other)",
    )  # fmt: skip
    add_options(parser, seeds=2, steps=STEPS, out="build/comparison")
    return parse_options(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, judge and compare."""
    args = parse(argv)
    domains = read_index(args.shards).domains  # fails early if there are no shards
    print("counting FLOPs", flush=True)
    plan = plan_of(args.methods, args.budgets, domains, args.steps)
    runs = list_runs([*plan.parts], args.seeds, args.out)
    conduct(
        runs,
        args,
        partial(training_options, plan=plan, shards=args.shards),
        partial(judge_run, plan=plan, shards=args.shards),
        partial(report, runs, plan, args.steps, args.shards, args.out),
        lambda run: plan.most_processes(run.row),
    )
    print(f"written to {args.out}: table.md, table.json, picture.png")


if __name__ == "__main__":
    run_command(main)
