"""Results of evaluations: files of a run, tables for people.

RUN/evaluation/LABEL/step_NNNNNNNN_seed_N.json (see scores.py) holds a header (what the numbers
depend on), a row for each task, and means over tasks. Beside it lie pictures of the tasks.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stargan_dist import storage
from stargan_dist.console.tables import format_table
from stargan_dist.evaluation.tasks import GUIDES, LATENT, REAL, REFERENCE, tasks
from stargan_dist.runs.checkpoint import step_name
from stargan_dist.runs.scores import EVALUATIONS, Result, read

Row = dict[str, Any]


def label(result: Mapping[str, Any]) -> str:
    """The protocol of a result, and what departs from its usual form."""
    changed = [result["precision"]] if result["precision"] != "float32" else []
    own = {facts["sha256"][:8] for facts in result["extractors"].values() if not facts["official"]}
    return "-".join([result["protocol"], *changed, *sorted(own)])


def place(run: str, result: Mapping[str, Any]) -> str:
    """Where a result stands. Its header is enough to tell."""
    name = f"{step_name(result['step'])}_seed_{result['seed']}.json"
    return storage.join(run, EVALUATIONS, label(result), name)


def picture_place(where: str, name: str) -> str:
    """Where the picture of a task of the result at `where` stands."""
    return storage.join(where.removesuffix(".json"), f"{name}.jpg")


def begun(where: str, header: Mapping[str, Any]) -> Result:
    """The result that an earlier evaluation wrote, if it has this header, or a new one."""
    result = read(where)
    if result is not None and {name: result.get(name) for name in header} == header:
        return result
    return summarised({**header, "rows": []})


def to_json(result: Result) -> bytes:
    return (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode()


def finished_tasks(result: Result) -> set[tuple[str, str, str]]:
    """(guide, source, target) of the tasks that were measured."""
    return {_key(row) for row in result["rows"] if "error" not in row}


def _key(row: Row) -> tuple[str, str, str]:
    return row["guide"], row["source"], row["target"]


def with_row(result: Result, row: Row) -> Result:
    """A result with a row more, or with one in the place of an earlier attempt."""
    domains = result["domains"]
    rows = [*(other for other in result["rows"] if _key(other) != _key(row)), row]

    def order(row: Row) -> tuple[int, ...]:
        guide, source, target = _key(row)
        return GUIDES.index(guide), domains.index(source), domains.index(target)

    return summarised({**result, "rows": sorted(rows, key=order)})


def summarised(result: Result) -> Result:
    """Set the means over tasks, and the score, the mean of all translations: lower is better.

    A mean is None until all of its tasks are measured.
    """
    frechet, kernel, diversity = result["metrics"]
    counts = Counter(task.guide for task in tasks(len(result["domains"]), result["guides"]))

    def mean(metric: str, guide: str) -> float | None:
        values = [row[metric] for row in result["rows"] if row["guide"] == guide and metric in row]
        return sum(values) / len(values) if values and len(values) == counts[guide] else None

    means = {f"{m}_{g}": mean(m, g) for m in (frechet, kernel) for g in GUIDES}
    means |= {f"{diversity}_{g}": mean(diversity, g) for g in (LATENT, REFERENCE)}
    guided = [means[f"{frechet}_{guide}"] for guide in result["guides"] if guide != REAL]
    whole = len(finished_tasks(result)) == counts.total()
    known = [value for value in guided if whole and value is not None]
    score = sum(known) / len(known) if known and len(known) == len(guided) else None
    return {**result, "means": means, "score": score}


def errors(result: Result) -> list[str]:
    """What kept tasks from being measured, each cause once."""
    return list(dict.fromkeys(row["error"] for row in result["rows"] if "error" in row))


# Tables.


def number(value: float | None) -> str:
    """Two decimal places from 10 on, four below; JSON has them all."""
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def headline(result: Result) -> str:
    """What was measured, and with what, in one line."""
    extractors = result["extractors"]
    told = {facts["network"]: facts for facts in extractors.values()}
    networks = "; ".join(
        name + ("" if facts["official"] else f", weights {facts['sha256'][:8]}")
        for name, facts in told.items()
    )
    return (
        f"step {result['step']}, protocol {result['protocol']} ({networks}), "
        f"{result['precision']}, "
        f"seed {result['seed']}, {result['outputs_per_source']} outputs a source"
    )


def table(result: Result) -> str:
    """A result for people: each task, and the means."""
    metrics = result["metrics"]
    lines = [["guide", "task", "images", *metrics]]
    for row in result["rows"]:
        guide, source, target = _key(row)
        task = target if guide == REAL else f"{source} → {target}"
        told = [number(row.get(metric)) for metric in metrics]
        lines.append([guide, task, str(row.get("images", "–")), *told])
    for guide in result["guides"]:
        means = [number(result["means"].get(f"{metric}_{guide}")) for metric in metrics]
        lines.append([guide, "mean", "", *means])
    notes = [f"not measured: {error}" for error in errors(result)]
    return "\n".join([format_table(lines, left=(0, 1)), *notes, *_cautions(result)])


def _cautions(result: Result) -> list[str]:
    """What a reader of the numbers should know."""
    few = [
        row
        for row in result["rows"]
        if min(row.get("images", math.inf), row.get("real_images", math.inf)) <= result["features"]
    ]
    if not few:
        return []
    frechet, kernel, _ = result["metrics"]
    return [
        f"{frechet}: {len(few)} tasks have no more images than features, which makes it too large; "
        f"{kernel} has no such bias"
    ]


def repeated(results: Sequence[Result]) -> str:
    """Means and sample deviations over the seeds of several results, for people."""
    metrics = results[0]["metrics"]
    lines = [["guide", "seeds", *metrics]]
    for guide in results[0]["guides"]:
        means = [spread(results, f"{metric}_{guide}") for metric in metrics]
        lines.append([guide, str(len(results)), *(told(mean, len(results)) for mean in means)])
    return format_table(lines, left=[0])


def spread(results: Sequence[Result], mean: str) -> tuple[float, float] | None:
    """Mean and sample deviation of a mean over results; None where one lacks it."""
    values = [result["means"].get(mean) for result in results]
    if None in values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def told(found: tuple[float, float] | None, count: int) -> str:
    """A mean, and its deviation if it is one of several values."""
    if found is None:
        return "–"
    return number(found[0]) + (f" ± {found[1]:.2g}" if count > 1 else "")
