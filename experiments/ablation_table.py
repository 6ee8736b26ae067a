"""Table of the ablation, and verdicts on whether the order of the paper's rows shows in it.

All functions are pure. They take the figures of runs: `row`, `seed`, and those of `COLUMNS` that
were measured. A row is a configuration of the paper's ablation, trained as the recipe of that name.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from study import Figures

from stargan_dist.evaluation import report

NO_DIVERSITY = 1e-3  # a smaller demo_lpips is rounding
MIN_DEVIATIONS = 2.0  # a difference of at least this many deviations counts as shown


class Row(NamedTuple):
    """Description of a row, with its FID and LPIPS on CelebA-HQ (arXiv 1912.01865, table 1)."""

    description: str
    fid: float | None = None
    lpips: float | None = None


ROWS = {
    "a": Row("StarGAN", 98.4),
    "b": Row("A with a multi-task discriminator", 91.4),
    "c": Row("B with R1, the logistic loss and AdaIN", 80.5),
    "d": Row("C with a latent code given to G", 32.3, 0.312),
    "e": Row("style codes of domains in place of label and latent", 17.1, 0.405),
    "f": Row("E with diversity regularisation: StarGAN v2", 13.7, 0.452),
}

# Columns of the table: names of figures and their headings.
COLUMNS = {
    "demo_fid": "demo_fid",
    "diversity": "demo_lpips",
    "accuracy": "right species",
    "pose_px": "head moved, px",
    "spread": "fur spread",
    "demo_fid_reference": "demo_fid, by reference",
    "accuracy_reference": "right species, by reference",
}


def values_by_seed(runs: Sequence[Figures], row: str, name: str) -> dict[int, float]:
    """Return one figure of the runs of a row, by seed."""
    return {
        figures["seed"]: figures[name]
        for figures in runs
        if figures["row"] == row and name in figures
    }


def cell(values: Sequence[float]) -> str:
    """Format mean ± sample deviation, or the single value."""
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return report.format_mean((statistics.fmean(values), deviation), len(values))


def table(runs: Sequence[Figures], rows: Sequence[str]) -> str:
    """Format the figures of the given rows as a Markdown table."""
    heads = ["row", "what it is", "seeds", *COLUMNS.values(), "paper: FID", "paper: LPIPS"]
    lines = [heads, ["---"] * len(heads), *(table_line(runs, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_line(runs: Sequence[Figures], row: str) -> list[str]:
    """Return the cells of one row."""
    columns = {name: list(values_by_seed(runs, row, name).values()) for name in COLUMNS}
    description, fid, lpips = ROWS.get(row, Row(""))
    paper = ["–" if value is None else f"{value:g}" for value in (fid, lpips)]
    seeds = str(len(columns["demo_fid"]))
    return [title(row), description, seeds, *map(cell, columns.values()), *paper]


def title(row: str) -> str:
    """Return A to F for the paper's rows; names of other recipes as they are."""
    return row.upper() if len(row) == 1 else row


# Does the paper's order show?


def order_lines(runs: Sequence[Figures]) -> list[str]:
    """Return one line for each statement of the paper's table: shown by the runs or not.

    A comparison is shown if it holds for every seed and the means differ by at least
    `MIN_DEVIATIONS` deviations. The last line has the order of all rows.
    """
    return [
        *(no_diversity_line(runs, row) for row in ("a", "b", "c")),
        lower_line(runs, "demo_fid", "e", "d", "E is nearer to real images (demo_fid) than D"),
        lower_line(runs, "demo_fid", "f", "d", "F is nearer to real images (demo_fid) than D"),
        lower_line(runs, "diversity", "e", "f", "F is more diverse (demo_lpips) than E"),
        ranking(runs),
    ]


def no_diversity_line(runs: Sequence[Figures], row: str) -> str:
    """Report in one line whether the outputs of a row are the same for all latents."""
    claim, diversities = f"{title(row)} has no diversity", values_by_seed(runs, row, "diversity")
    if not diversities:
        return f"{claim}: not measured"
    agreeing = sum(value < NO_DIVERSITY for value in diversities.values())
    verdict = "shown" if agreeing == len(diversities) else "not shown"
    count = f"{agreeing} of {seeds_text(len(diversities))}"
    return f"{claim}: {verdict}, {count}; largest {max(diversities.values()):.2g}"


def lower_line(runs: Sequence[Figures], name: str, row: str, other: str, claim: str) -> str:
    """Report in one line whether a figure is lower for one row than for another, by seed."""
    values, others = values_by_seed(runs, row, name), values_by_seed(runs, other, name)
    seeds = sorted(values.keys() & others.keys())
    if not seeds:
        return f"{claim}: not measured"
    differences = [others[seed] - values[seed] for seed in seeds]
    agreeing = sum(difference > 0 for difference in differences)
    deviations = difference_in_deviations([values[s] for s in seeds], [others[s] for s in seeds])
    count = f"{agreeing} of {seeds_text(len(seeds))}"
    count += f", difference {statistics.fmean(differences):+.3g}"
    if deviations is None:
        return f"{claim}: not shown by one seed; {count}"
    verdict = comparison_verdict(agreeing, len(seeds), deviations)
    return f"{claim}: {verdict}; {count}, which is {deviations:+.1f} deviations"


def difference_in_deviations(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the mean of b minus the mean of a, in sample deviations of one run over seeds.

    The deviation is pooled from a and b. None if there is a single seed.
    """
    if len(a) < 2:
        return None
    pooled = math.sqrt((statistics.variance(a) + statistics.variance(b)) / 2)
    difference = statistics.fmean(b) - statistics.fmean(a)
    if pooled:
        return difference / pooled
    return math.copysign(math.inf, difference) if difference else 0.0


def comparison_verdict(agreeing: int, seeds: int, deviations: float) -> str:
    """Return the verdict on a comparison that holds for `agreeing` of the seeds."""
    if agreeing == seeds and deviations >= MIN_DEVIATIONS:
        return "shown"
    if agreeing == 0 and deviations <= -MIN_DEVIATIONS:
        return "not shown, but the opposite"
    return "not shown"


def ranking(runs: Sequence[Figures]) -> str:
    """Return the order of the rows by mean demo_fid, as measured and as published."""
    values = {row: list(values_by_seed(runs, row, "demo_fid").values()) for row in ROWS}
    means = {row: statistics.fmean(of_row) for row, of_row in values.items() if of_row}
    measured = " ".join(title(row) for row in sorted(means, key=lambda row: means[row]))
    published = " ".join(title(row) for row in sorted(means, key=lambda row: ROWS[row].fid or 0))
    return f"by mean demo_fid, lowest first: {measured or '–'}; in the paper: {published or '–'}"


def seeds_text(count: int) -> str:
    """Return a number of seeds with its noun."""
    return f"{count} seed{'' if count == 1 else 's'}"
