"""Comparison of schedules: means over seeds, the table, and the curves of the charts.

All functions are pure. They take the figures of runs: `row` (a schedule, or a schedule with a
budget), `seed`, and `checkpoints` in the order of their steps, each with `step`, `images`,
`train_seconds`, `accuracy` and `MEASURES`. Only evaluated checkpoints, such as the last one, have
`demo_fid` and `demo_lpips`.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from charts import Panel, Point
from study import Figures

from stargan_dist.evaluation import report

REFERENCE = "published"
BEYOND_DOUBT = 2  # standard errors


class Measure(NamedTuple):
    """A column of the table, and the loss that compares runs by it: lower is better."""

    heading: str
    loss: Callable[[float], float]


def _lower(value: float) -> float:
    return value


def _higher(value: float) -> float:
    return -value


def _near_one(value: float) -> float:
    return abs(value - 1)


MEASURES = {
    "accuracy_latent": Measure("right species by latents", _higher),
    "accuracy_reference": Measure("by references", _higher),
    "pose_px": Measure("head moved, px", _lower),
    "spread": Measure("fur spread", _near_one),
    "demo_fid": Measure("demo_fid", _lower),
    "demo_lpips": Measure("demo_lpips", _higher),
}
SECONDS = "train_seconds"
# Of the charts. The accuracy is the mean of those by latents and by references.
CURVES = {"accuracy": "right species", "demo_fid": "demo_fid"}
AXES = {"images": "images seen", "tflop": "TFLOP", SECONDS: "seconds of training"}


class Estimate(NamedTuple):
    """Mean over seeds, and its standard error; None if there is one seed."""

    mean: float
    error: float | None
    seeds: int

    def __str__(self) -> str:
        return report.format_mean((self.mean, self.error or 0.0), self.seeds)


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of values and its standard error; None if there are none."""
    if not values:
        return None
    count = len(values)
    error = statistics.stdev(values) / math.sqrt(count) if count > 1 else None
    return Estimate(statistics.fmean(values), error, count)


def values_at(checkpoints: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return one figure of those checkpoints that have it."""
    return [checkpoint[name] for checkpoint in checkpoints if name in checkpoint]


# The end of the runs.


def last_checkpoints(runs: Sequence[Figures], schedule: str) -> list[dict[str, Any]]:
    """Return the last checkpoint of each run of a schedule."""
    return [figures["checkpoints"][-1] for figures in runs if figures["row"] == schedule]


def estimates(runs: Sequence[Figures], schedule: str) -> dict[str, Estimate]:
    """Return the estimates of a schedule by name: images per second, and the measures."""
    ends = last_checkpoints(runs, schedule)
    found = {name: estimate(values_at(ends, name)) for name in (SECONDS, *MEASURES)}
    return {name: value for name, value in found.items() if value}


def worse_measures(runs: Sequence[Figures], schedule: str) -> list[str] | None:
    """Return the measures in which a schedule is worse than `published`.

    Worse is a mean loss more than one standard error of `published` above the mean of `published`.
    None if it cannot be said: one of the two was not trained, or with one seed.
    """
    worse = []
    for name, measure in MEASURES.items():
        ours, reference = (
            estimate(
                [measure.loss(value) for value in values_at(last_checkpoints(runs, row), name)]
            )
            for row in (schedule, REFERENCE)
        )
        if not (ours and reference and ours.error is not None and reference.error is not None):
            return None
        if ours.mean > reference.mean + reference.error:
            worse.append(name)
    return worse


def measurably_worse(runs: Sequence[Figures], schedule: str) -> list[str] | None:
    """Return the measures in which a schedule is worse than `published` beyond doubt.

    That is: the differences of the losses of two runs of one seed have a mean of more than
    `BEYOND_DOUBT` of its standard errors. None if fewer than two seeds have both runs.
    """
    by_seed = [
        {f["seed"]: f["checkpoints"][-1] for f in runs if f["row"] == row}
        for row in (schedule, REFERENCE)
    ]
    worse = []
    for name, measure in MEASURES.items():
        ours, theirs = (
            {seed: measure.loss(end[name]) for seed, end in ends.items() if name in end}
            for ends in by_seed
        )
        difference = estimate([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])
        if not difference or difference.error is None:
            return None
        if difference.mean > BEYOND_DOUBT * difference.error:
            worse.append(name)
    return worse


def verdict(
    runs: Sequence[Figures],
    schedule: str,
    compare: Callable[[Sequence[Figures], str], list[str] | None],
) -> str:
    """Return the table's cell on whether a schedule is as good as `published` by a comparison."""
    if schedule == REFERENCE:
        return "–"
    worse = compare(runs, schedule)
    if worse is None:
        return "unknown"
    return f"no: {', '.join(worse)}" if worse else "yes"


def table(runs: Sequence[Figures], gflop: Mapping[str, float]) -> str:
    """Format the schedules as a Markdown table.

    Args:
        gflop: GFLOP per image of each schedule, and of the `literal` iteration.
    """
    heads = ["schedule", "seeds", "GFLOP per image", "/ literal", f"/ {REFERENCE}", "images",
             AXES[SECONDS], *(measure.heading for measure in MEASURES.values()),
             f"as good as {REFERENCE}", "not measurably worse"]  # fmt: skip
    rows = [row for row in gflop if row != "literal"]
    lines = [heads, ["---"] * len(heads), *(table_line(runs, gflop, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_line(runs: Sequence[Figures], gflop: Mapping[str, float], schedule: str) -> list[str]:
    """Return the cells of one schedule."""
    found, flops = estimates(runs, schedule), gflop[schedule]
    ends = last_checkpoints(runs, schedule)
    ratios = [flops / gflop[name] if name in gflop else None for name in ("literal", REFERENCE)]
    return [schedule, str(len(ends)), f"{flops:.4g}", *(f"{r:.3f}" if r else "–" for r in ratios),
            str(ends[0]["images"]) if ends else "–",
            *(str(found.get(name, "–")) for name in (SECONDS, *MEASURES)),
            *(verdict(runs, schedule, by) for by in (worse_measures, measurably_worse))
            ]  # fmt: skip


def summary(runs: Sequence[Figures], gflop: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return the table for programs: [mean, standard error] of each figure, by schedule."""
    rows = {}
    for schedule in (row for row in gflop if row != "literal"):
        ends, worse = last_checkpoints(runs, schedule), worse_measures(runs, schedule)
        rows[schedule] = {
            "seeds": len(ends),
            "images": ends[0]["images"] if ends else None,
            "gflop_per_image": gflop[schedule],
            "of_literal": gflop[schedule] / gflop["literal"],
            **{name: found[:2] for name, found in estimates(runs, schedule).items()},
            "as_good_as_published": None if worse is None else not worse,
            "measurably_worse_in": measurably_worse(runs, schedule),
        }
    return rows


# The course of the runs.


def curve(
    runs: Sequence[Figures], schedule: str, gflop: float, x_name: str, y_name: str
) -> list[Point]:
    """Return the points of a schedule, one for each step at which `y_name` was measured.

    Args:
        gflop: GFLOP per image of the schedule.
        x_name: a key of `AXES`.
        y_name: a key of `CURVES`.
    """
    by_step: dict[int, list[dict[str, Any]]] = {}
    for figures in (figures for figures in runs if figures["row"] == schedule):
        for checkpoint in figures["checkpoints"]:
            if y_name in checkpoint:
                tflop = checkpoint["images"] * gflop / 1000
                by_step.setdefault(checkpoint["step"], []).append(checkpoint | {"tflop": tflop})
    return [point_of(checkpoints, x_name, y_name) for _, checkpoints in sorted(by_step.items())]


def point_of(checkpoints: Sequence[Mapping[str, Any]], x_name: str, y_name: str) -> Point:
    """Return the mean of checkpoints of several seeds at one step."""
    y = estimate(values_at(checkpoints, y_name))
    assert y
    return Point(statistics.fmean(values_at(checkpoints, x_name)), y.mean, y.error or 0.0)


def panels(runs: Sequence[Figures], gflop: Mapping[str, float]) -> list[list[Panel]]:
    """Return a row of charts for each of `CURVES`, against each of `AXES`."""

    def lines(x_name: str, y_name: str) -> dict[str, list[Point]]:
        rows = [row for row in gflop if row != "literal"]
        return {row: curve(runs, row, gflop[row], x_name, y_name) for row in rows}

    return [
        [Panel(x_title, y_title, lines(x_name, y_name)) for x_name, x_title in AXES.items()]
        for y_name, y_title in CURVES.items()
    ]
