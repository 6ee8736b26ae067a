"""Evaluations of several runs, side by side, with the figures of the paper."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from stargan_dist.console.tables import format_table
from stargan_dist.errors import UserError
from stargan_dist.evaluation import results
from stargan_dist.evaluation.tasks import LATENT, REAL, REFERENCE
from stargan_dist.runs.scores import Result, complete, shared, way

# arXiv 1912.01865, tables 2 and 3, 256 px: FID and LPIPS by latents, FID and LPIPS by references,
# FID of real images.
PAPER = [
    ("CelebA-HQ", "StarGAN v2", (13.73, 0.4515, 23.84, 0.3880, 14.8)),
    ("CelebA-HQ", "MUNIT", (31.4, 0.363, 107.1, 0.176, 14.8)),
    ("CelebA-HQ", "DRIT", (52.1, 0.178, 53.3, 0.311, 14.8)),
    ("CelebA-HQ", "MSGAN", (33.1, 0.389, 39.6, 0.312, 14.8)),
    ("AFHQ", "StarGAN v2", (16.18, 0.4501, 19.78, 0.4315, 12.9)),
    ("AFHQ", "MUNIT", (41.5, 0.511, 223.9, 0.199, 12.9)),
    ("AFHQ", "DRIT", (95.6, 0.326, 114.8, 0.156, 12.9)),
    ("AFHQ", "MSGAN", (61.4, 0.517, 69.8, 0.375, 12.9)),
]


def find(runs: Sequence[str]) -> list[dict[str, Any]]:
    """Groups of results whose numbers may be compared: what they share, and their rows.

    A row is one checkpoint of one run, over all seeds that it was measured with: `means` are pairs
    of mean and sample deviation. `best` marks the lowest Fréchet distance of a run in a group.

    Raises:
        UserError: a run has no complete evaluation.
    """
    groups: dict[str, dict[str, Any]] = {}
    for run in runs:
        measured: dict[tuple[str, int, str], list[Result]] = defaultdict(list)
        for result in complete(run):
            groups.setdefault(way(result), {**shared(result), "rows": []})
            measured[way(result), result["step"], result["generator"]].append(result)
        if not measured:
            raise UserError(
                f"{run} has no complete evaluation: python -m stargan_dist.evaluate --run {run}"
            )
        rows = [(key, _row(run, found)) for (key, *_), found in sorted(measured.items())]
        for key, row in rows:
            row["best"] = row["score"] == min(r["score"] for k, r in rows if k == key)
            groups[key]["rows"].append(row)
    return [groups[key] for key in sorted(groups)]


def _row(run: str, found: list[Result]) -> dict[str, Any]:
    return {
        "run": run,
        "step": found[0]["step"],
        "seeds": sorted(result["seed"] for result in found),
        "score": sum(result["score"] for result in found) / len(found),
        "means": {name: results.spread(found, name) for name in found[0]["means"]},
    }


def table(groups: Sequence[dict[str, Any]]) -> str:
    """For people: a table for each group. Numbers of different groups do not compare."""
    return "\n\n".join(f"{_title(group)}\n{_table(group)}" for group in groups)


def _title(group: dict[str, Any]) -> str:
    networks = {facts["network"] for facts in group["extractors"].values()}
    return (
        f"protocol {results.label(group)} ({', '.join(sorted(networks))}), {group['precision']}, "
        f"{group['image_size']} px, {', '.join(group['domains'])} (data {group['data'][:8]}); "
        "* best of its run"
    )


def _table(group: dict[str, Any]) -> str:
    frechet, kernel, diversity = group["metrics"]
    shown = [
        f"{metric}_{guide}" for guide in (LATENT, REFERENCE) for metric in (frechet, diversity)
    ]
    shown += [f"{frechet}_{REAL}", f"{kernel}_{LATENT}", f"{kernel}_{REFERENCE}"]
    lines = [["", "run", "step", "seeds", *(name.replace("_", " ") for name in shown)]]
    for row in group["rows"]:
        seeds = len(row["seeds"])
        cells = [results.told(row["means"][name], seeds) for name in shown]
        best = "*" if row["best"] else ""
        lines.append([best, row["run"], str(row["step"]), str(seeds), *cells])
    if (results.label(group), group["image_size"]) == ("paper", 256):
        for data, method, figures in PAPER:
            cells = [*map(results.number, figures), "–", "–"]
            lines.append(["", f"{method}, {data} (paper)", "–", "–", *cells])
    return format_table(lines, left=(0, 1))
