"""Presentation of evaluation results: headlines, tables and TensorBoard."""

import math
from collections.abc import Sequence

from torch.utils.tensorboard import SummaryWriter

from stargan_dist import storage
from stargan_dist.console.tables import format_table
from stargan_dist.evaluation.results import mean_and_deviation, task_errors, task_key
from stargan_dist.evaluation.tasks import REAL
from stargan_dist.runs.scores import Result


def format_number(value: float | None) -> str:
    """Format a metric with two decimal places from 10 on, and four below."""
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def format_mean(mean: tuple[float, float] | None, count: int) -> str:
    """Format a mean, followed by its deviation if it was taken over several values.

    Args:
        mean: mean and sample standard deviation, or None if it is unknown.
        count: the number of values.
    """
    if mean is None:
        return "–"
    return format_number(mean[0]) + (f" ± {mean[1]:.2g}" if count > 1 else "")


def headline(result: Result) -> str:
    """Return one line with the step, the protocol, its networks and the precision."""
    by_network = {extractor["network"]: extractor for extractor in result["extractors"].values()}
    networks = "; ".join(
        name + ("" if extractor["official"] else f", weights {extractor['sha256'][:8]}")
        for name, extractor in by_network.items()
    )
    outputs = result["outputs_per_source"]
    return (
        f"step {result['step']}, protocol {result['protocol']} ({networks}), "
        f"{result['precision']}, "
        f"seed {result['seed']}, {outputs} output{'s' * (outputs > 1)} per source"
    )


def table(result: Result) -> str:
    """Return a table of a result: a line per task, the means over tasks, and notes."""
    metrics = result["metrics"]
    lines = [["guide", "task", "images", *metrics]]
    for row in result["rows"]:
        guide, source, target = task_key(row)
        task = target if guide == REAL else f"{source} → {target}"
        values = [format_number(row.get(metric)) for metric in metrics]
        lines.append([guide, task, str(row.get("images", "–")), *values])
    for guide in result["guides"]:
        means = [format_number(result["means"].get(f"{metric}_{guide}")) for metric in metrics]
        lines.append([guide, "mean", "", *means])
    notes = [f"not measured: {error}" for error in task_errors(result)]
    return "\n".join([format_table(lines, left=(0, 1)), *notes, *_bias_notes(result)])


def _bias_notes(result: Result) -> list[str]:
    """Return a note if tasks have too few images for an unbiased Fréchet distance."""
    small = [
        row
        for row in result["rows"]
        if min(row.get("images", math.inf), row.get("real_images", math.inf)) <= result["features"]
    ]
    if not small:
        return []
    frechet, kernel, _ = result["metrics"]
    return [
        f"{frechet}: {len(small)} tasks have no more images than features, so their values are too "
        f"large; {kernel} has no such bias"
    ]


def table_over_seeds(results: Sequence[Result]) -> str:
    """Return a table of means and sample deviations over results that differ in their seeds."""
    metrics = results[0]["metrics"]
    lines = [["guide", "seeds", *metrics]]
    for guide in results[0]["guides"]:
        means = [mean_and_deviation(results, f"{metric}_{guide}") for metric in metrics]
        cells = [format_mean(mean, len(results)) for mean in means]
        lines.append([guide, str(len(results)), *cells])
    return format_table(lines, left=[0])


def scalars(result: Result, prefix: str) -> dict[str, float]:
    """Return the values of a result that were measured, by tags.

    Args:
        result: the result.
        prefix: the group of the tags: `PREFIX/METRIC_GUIDE` for means and
            `PREFIX_tasks/METRIC_GUIDE_SOURCE_to_TARGET` for tasks.
    """
    values = {f"{prefix}/{name}": mean for name, mean in result["means"].items()}
    for row in result["rows"]:
        task = f"{row['guide']}_{row['source']}_to_{row['target']}"
        for metric in result["metrics"]:
            values[f"{prefix}_tasks/{metric}_{task}"] = row.get(metric)
    return {name: value for name, value in values.items() if value is not None}


def log_to_tensorboard(run: str, result: Result, prefix: str) -> None:
    """Write a result to RUN/tensorboard/evaluation, with the tags of `scalars`."""
    with SummaryWriter(storage.join(run, "tensorboard", "evaluation")) as board:
        for name, value in scalars(result, prefix).items():
            board.add_scalar(name, value, result["step"])
