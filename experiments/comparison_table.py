"""Tables of the comparison, and whether the papers' orders show in them. All functions are pure."""

import statistics
from collections.abc import Iterator, Sequence

from ablation_table import COLUMNS, cell, lower_line, no_diversity_line, values_by_seed
from comparison_methods import METHODS, Plan, pairs_of
from study import Figures

from stargan_dist.evaluation.compare import PAPER
from stargan_dist.objectives.recipes import TABLE


def complete_rows(runs: Sequence[Figures], plan: Plan) -> dict[str, list[Figures]]:
    """Return the figures of each method, budget and seed of which all trainings are judged.

    Returns:
        By budget: means over the trainings of a method, with its name as `row`, and the sums of
        their images and, where all were timed, their seconds.
    """
    by_run = {(figures["row"], figures["seed"]): figures for figures in runs}
    seeds = sorted({seed for _, seed in by_run})
    return {budget: [*_rows(by_run, plan, budget, seeds)] for budget in plan.budgets}


def _rows(
    by_run: dict[tuple[str, int], Figures], plan: Plan, budget: str, seeds: Sequence[int]
) -> Iterator[Figures]:
    for method in METHODS:
        rows = plan.parts_of(method, budget)
        for seed in seeds:
            found = [by_run[row, seed] for row in rows if (row, seed) in by_run]
            if rows and len(found) == len(rows):
                yield {"row": method, "seed": seed, **_together(found)}


def _together(parts: Sequence[Figures]) -> Figures:
    figures: Figures = {
        name: statistics.fmean(part[name] for part in parts) for name in COLUMNS if name in parts[0]
    }
    figures["images"] = sum(part["images"] for part in parts)
    seconds = [part["seconds"] for part in parts]
    return figures | {"seconds": None if None in seconds else sum(seconds)}


def table(rows: Sequence[Figures], plan: Plan, budget: str) -> str:
    """Format the figures of the methods as a Markdown table."""
    methods = [method for method in METHODS if plan.parts_of(method, budget)]
    heads = [
        "method", "runs", "parameters, M", "GFLOP per output", "images", "training, TFLOP",
        "seeds", *COLUMNS.values(), "paper: FID, LPIPS",
    ]  # fmt: skip
    lines = [heads, ["---"] * len(heads), *(_line(rows, plan, budget, m) for m in methods)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(rows: Sequence[Figures], plan: Plan, budget: str, method: str) -> list[str]:
    columns = [list(values_by_seed(rows, method, name).values()) for name in COLUMNS]
    cost, count = plan.costs[method], len(pairs_of(method, plan.domains))
    images = sum(plan.images(row) for row in plan.parts_of(method, budget))
    return [
        METHODS[method].title, str(count), f"{cost.parameters * count / 1e6:.3g}",
        f"{cost.translation_gflop:.3g}", str(images), f"{images * cost.training_gflop / 1e3:.3g}",
        str(len(columns[0])), *map(cell, columns), *published(method),
    ]  # fmt: skip


def published(method: str) -> list[str]:
    """Return a cell with the published means by latents on CelebA-HQ and on AFHQ."""
    means = [paper.means for paper in PAPER if paper.method == METHODS[method].title]
    pairs = [f"{of['fid_latent']:g}, {of['lpips_latent']:g}" for of in means]
    return ["; ".join(pairs) or "–"]


def order_lines(rows: Sequence[Figures]) -> list[str]:
    """Return one line for each statement of the papers: shown by the runs or not.

    A comparison is shown if it holds for every seed and the means differ by two deviations.
    """
    methods = [method for method in METHODS if values_by_seed(rows, method, "demo_fid")]
    deterministic = [method for method in methods if not TABLE[method].is_diverse]
    others = [method for method in methods if method != "f" and TABLE[method].is_diverse]
    nearer = "StarGAN v2 is nearer to real images (demo_fid) than "
    more_diverse = "MSGAN is more diverse (demo_lpips) than DRIT"
    return [
        *(_named(no_diversity_line(rows, method), method) for method in deterministic),
        *(lower_line(rows, "demo_fid", "f", m, nearer + METHODS[m].title) for m in others),
        lower_line(rows, "diversity", "drit", "msgan", more_diverse),
        _ranking(rows, methods),
    ]  # fmt: skip


def _named(line: str, method: str) -> str:
    return line.replace(method, METHODS[method].title, 1)


def _ranking(rows: Sequence[Figures], methods: Sequence[str]) -> str:
    means = {m: statistics.fmean(values_by_seed(rows, m, "demo_fid").values()) for m in methods}
    order = sorted(means, key=lambda method: means[method])
    return f"by mean demo_fid, lowest first: {', '.join(METHODS[m].title for m in order) or '–'}"
