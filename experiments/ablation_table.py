"""The table of the ablation, and whether the order of the paper's rows shows in it: pure.

What it is made from are the figures of runs: `row`, `seed`, and those of `COLUMNS` that were
measured.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from stargan_dist.evaluation import report

NO_DIVERSITY = 1e-3  # a demo_lpips below this is rounding
CLEAR = 2.0  # differences of so many deviations are called shown

Figures = dict[str, Any]


class Row(NamedTuple):
    """What a row is, and its FID and LPIPS on CelebA-HQ (arXiv 1912.01865, table 1)."""

    what: str
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

# Columns of the table: names of figures, and their headings.
COLUMNS = {
    "demo_fid": "demo_fid",
    "diversity": "demo_lpips",
    "accuracy": "right species",
    "pose_px": "head moved, px",
    "spread": "fur spread",
    "demo_fid_reference": "demo_fid, by reference",
    "accuracy_reference": "right species, by reference",
}


def values(found: Sequence[Figures], row: str, name: str) -> dict[int, float]:
    """A figure of a row, by seed."""
    return {
        figures["seed"]: figures[name]
        for figures in found
        if figures["row"] == row and name in figures
    }


def cell(found: Sequence[float]) -> str:
    """Mean ± sample deviation, or the one value."""
    if not found:
        return "–"
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return report.format_mean((statistics.fmean(found), deviation), len(found))


def table(found: Sequence[Figures], rows: Sequence[str]) -> str:
    """The rows that were run, as Markdown."""
    heads = ["row", "what it is", "seeds", *COLUMNS.values(), "paper: FID", "paper: LPIPS"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        of_row = {name: list(values(found, row, name).values()) for name in COLUMNS}
        known = ROWS.get(row, Row(""))
        paper = ["–" if value is None else f"{value:g}" for value in (known.fid, known.lpips)]
        seeds = str(len(of_row["demo_fid"]))
        lines.append([title(row), known.what, seeds, *map(cell, of_row.values()), *paper])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def title(row: str) -> str:
    """A, and so on; names of other recipes as they are."""
    return row.upper() if len(row) == 1 else row


# Does the paper's order show?


def order_lines(found: Sequence[Figures]) -> list[str]:
    """What the figures say of the three things that the paper's table shows, and the whole order.

    A comparison is called shown if all seeds have it and the means are `CLEAR` deviations apart.
    """
    return [
        *(without_diversity(found, row) for row in ("a", "b", "c")),
        lower(found, "demo_fid", "e", "d", "E is nearer to real images (demo_fid) than D"),
        lower(found, "demo_fid", "f", "d", "F is nearer to real images (demo_fid) than D"),
        lower(found, "diversity", "e", "f", "F is more diverse (demo_lpips) than E"),
        ranking(found),
    ]


def without_diversity(found: Sequence[Figures], row: str) -> str:
    """Whether the outputs of a row are the same for all latents."""
    claim, known = f"{title(row)} has no diversity", values(found, row, "diversity")
    if not known:
        return f"{claim}: not measured"
    none = sum(value < NO_DIVERSITY for value in known.values())
    verdict = "shown" if none == len(known) else "not shown"
    return f"{claim}: {verdict}, {none} of {counted(known)}; largest {max(known.values()):.2g}"


def lower(found: Sequence[Figures], name: str, row: str, other: str, claim: str) -> str:
    """Whether a figure is lower for one row than for another: by seeds, and by deviations."""
    ours, theirs = values(found, row, name), values(found, other, name)
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return f"{claim}: not measured"
    differences = [theirs[seed] - ours[seed] for seed in both]
    agreeing = sum(difference > 0 for difference in differences)
    apart = deviations([ours[s] for s in both], [theirs[s] for s in both])
    count = f"{agreeing} of {counted(both)}, difference {statistics.fmean(differences):+.3g}"
    if apart is None:
        return f"{claim}: not shown by one seed; {count}"
    verdict = verdict_of(agreeing, len(both), apart)
    return f"{claim}: {verdict}; {count}, which is {apart:+.1f} deviations"


def deviations(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """How far the second mean lies above the first, in deviations over seeds of one run.

    The deviation is pooled from both. None if a single seed was run.
    """
    if len(ours) < 2:
        return None
    pooled = math.sqrt((statistics.variance(ours) + statistics.variance(theirs)) / 2)
    apart = statistics.fmean(theirs) - statistics.fmean(ours)
    return apart / pooled if pooled else math.copysign(math.inf, apart) if apart else 0.0


def verdict_of(agreeing: int, seeds: int, apart: float) -> str:
    """In a word or two."""
    if agreeing == seeds and apart >= CLEAR:
        return "shown"
    if agreeing == 0 and apart <= -CLEAR:
        return "not shown, but the opposite"
    return "not shown"


def ranking(found: Sequence[Figures]) -> str:
    """The rows by their mean distance, as measured and as published."""
    means = {row: list(values(found, row, "demo_fid").values()) for row in ROWS}
    known = {row: statistics.fmean(of_row) for row, of_row in means.items() if of_row}
    measured = " ".join(title(row) for row in sorted(known, key=lambda row: known[row]))
    published = " ".join(title(row) for row in sorted(known, key=lambda row: ROWS[row].fid or 0))
    return (
        f"from the lowest mean demo_fid up: {measured or '–'}; by the paper's: {published or '–'}"
    )


def counted(seeds: Sequence[int] | dict[int, float]) -> str:
    """With the noun."""
    return f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"
