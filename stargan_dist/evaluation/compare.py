"""Comparison of the evaluations of several runs with each other and with the paper's figures."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from stargan_dist.console.tables import format_table
from stargan_dist.errors import UserError
from stargan_dist.evaluation import report
from stargan_dist.evaluation.results import mean_and_deviation, protocol_variant
from stargan_dist.evaluation.tasks import GUIDES, REAL
from stargan_dist.runs.scores import Result, comparison_fields, comparison_key, complete_results


class Published(NamedTuple):
    """Published means of a method, by the protocol `paper` at 256 px."""

    dataset: str
    method: str
    means: dict[str, float]


def _published(dataset: str, method: str, *figures: float) -> Published:
    names = ("fid_latent", "lpips_latent", "fid_reference", "lpips_reference", "fid_real")
    return Published(dataset, method, dict(zip(names, figures, strict=True)))


# arXiv 1912.01865, tables 2 and 3.
PAPER = [
    _published("CelebA-HQ", "StarGAN v2", 13.73, 0.4515, 23.84, 0.3880, 14.8),
    _published("CelebA-HQ", "MUNIT", 31.4, 0.363, 107.1, 0.176, 14.8),
    _published("CelebA-HQ", "DRIT", 52.1, 0.178, 53.3, 0.311, 14.8),
    _published("CelebA-HQ", "MSGAN", 33.1, 0.389, 39.6, 0.312, 14.8),
    _published("AFHQ", "StarGAN v2", 16.18, 0.4501, 19.78, 0.4315, 12.9),
    _published("AFHQ", "MUNIT", 41.5, 0.511, 223.9, 0.199, 12.9),
    _published("AFHQ", "DRIT", 95.6, 0.326, 114.8, 0.156, 12.9),
    _published("AFHQ", "MSGAN", 61.4, 0.517, 69.8, 0.375, 12.9),
]


def comparable_groups(runs: Sequence[str]) -> list[dict[str, Any]]:
    """Group the complete results of several runs by comparability.

    Returns:
        Groups: the fields in which their results agree, and `rows`. A row is one checkpoint of one
        run over all seeds that it was measured with. Its `means` are pairs of mean and sample
        deviation. `best` marks the lowest Fréchet distance of a run in a group.

    Raises:
        UserError: a run has no complete evaluation.
    """
    groups: dict[str, dict[str, Any]] = {}
    for run in runs:
        by_checkpoint: dict[tuple[str, int, str], list[Result]] = defaultdict(list)
        for result in complete_results(run):
            key = comparison_key(result)
            groups.setdefault(key, {**comparison_fields(result), "rows": []})
            by_checkpoint[key, result["step"], result["generator"]].append(result)
        if not by_checkpoint:
            raise UserError(
                f"{run} has no complete evaluation: run python -m stargan_dist.evaluate --run {run}"
            )
        rows = [(key, _row(run, seeds)) for (key, *_), seeds in sorted(by_checkpoint.items())]
        for key, row in rows:
            row["best"] = row["score"] == min(r["score"] for k, r in rows if k == key)
            groups[key]["rows"].append(row)
    return [groups[key] for key in sorted(groups)]


def _row(run: str, results: list[Result]) -> dict[str, Any]:
    """Return the row of one checkpoint, given its results with different seeds."""
    return {
        "run": run,
        "step": results[0]["step"],
        "seeds": sorted(result["seed"] for result in results),
        "score": sum(result["score"] for result in results) / len(results),
        "means": {name: mean_and_deviation(results, name) for name in results[0]["means"]},
    }


def table(groups: Sequence[dict[str, Any]]) -> str:
    """Return a titled table per group. Metrics of different groups are not comparable."""
    return "\n\n".join(f"{_title(group)}\n{_table(group)}" for group in groups)


def _title(group: dict[str, Any]) -> str:
    networks = {extractor["network"] for extractor in group["extractors"].values()}
    return (
        f"protocol {protocol_variant(group)} ({', '.join(sorted(networks))}), "
        f"{group['precision']}, {group['image_size']} px, {', '.join(group['domains'])} "
        f"(data {group['data'][:8]}); * best of its run"
    )


def _table(group: dict[str, Any]) -> str:
    names = _columns(group)
    lines = [["", "run", "step", "seeds", *(name.replace("_", " ") for name in names)]]
    for row in group["rows"]:
        seeds = len(row["seeds"])
        cells = [report.format_mean(row["means"].get(name), seeds) for name in names]
        best = "*" if row["best"] else ""
        lines.append([best, row["run"], str(row["step"]), str(seeds), *cells])
    for dataset, method, means in _published_rows(group):
        cells = [report.format_number(means.get(name)) for name in names]
        lines.append(["", f"{method}, {dataset} (paper)", "–", "–", *cells])
    return format_table(lines, left=(0, 1))


def _columns(group: dict[str, Any]) -> list[str]:
    """Return the means that a table shows: those that a run or the paper has."""
    frechet, kernel, rating = group["metrics"]
    translated = [guide for guide in GUIDES if guide != REAL]
    names = [f"{metric}_{guide}" for guide in translated for metric in (frechet, rating)]
    names += [f"{metric}_{REAL}" for metric in (frechet, rating)]
    names += [f"{kernel}_{guide}" for guide in translated]
    measured = {name for row in group["rows"] for name, mean in row["means"].items() if mean}
    published = {name for paper in _published_rows(group) for name in paper.means}
    return [name for name in names if name in measured | published]


def _published_rows(group: dict[str, Any]) -> list[Published]:
    """Return the published means that are comparable with a group."""
    return PAPER if (protocol_variant(group), group["image_size"]) == ("paper", 256) else []
