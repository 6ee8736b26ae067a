"""Measure the quality that each schedule keeps, on the drawn animals.

    python experiments/schedules.py [--schedules published sparse …] [--budgets fast:0.5 …]
        [--seeds 5] [--out build/schedules]

A schedule is a row of objectives/schedules.py: what an iteration computes, and when. Each is
trained as the demo (configs/demo.yaml) for equal numbers of images. `--budgets` trains some once
more, for the images that they see with a share of the FLOPs of that training under `published`, and
at other learning rates if asked: `published:0.5:2:0.6` has half of the images and twice the rates,
which decay to 0 from 0.6 of the steps on.
Runs of one seed see the same samples in the same order. The demo's judge (demo_quality.py) measures
a checkpoint every `--every` steps, and the protocol `demo` measures distance and diversity at the
end.

After each run OUT/table.md, OUT/table.json and OUT/plot.png are written anew. The table has means ±
standard errors over seeds; the plot shows quality against images seen, FLOPs and seconds of
training. FLOPs are counted for the demo's sizes (benchmarks/iteration_flops.py). Seconds are those
of the training loop, as the run has logged its speed: evaluations and repeated steps of interrupted
runs are left out, but other work on the machine counts.

A schedule is as good as `published` if every measure is better than its mean under `published`, or
worse by one standard error of `published` at most. It is measurably worse in a measure if the
differences between runs of one seed have a mean of more than two of its standard errors. The last
line is one JSON object.

The same command resumes an interrupted experiment.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from charts import draw_charts
from launching import CONFIGS, ROOT
from schedules_table import REFERENCE, panels, summary, table
from study import (
    PROTOCOL,
    Figures,
    Run,
    add_options,
    command_line,
    conduct,
    find_evaluation,
    find_last_evaluation,
    finished,
    judge_checkpoint,
    list_runs,
    parse_options,
    write_atomically,
    write_json,
)

sys.path.append(str(ROOT / "benchmarks"))

from inputs import random_batch, starganv2_networks
from iteration_flops import count_gflop

from baselines.networks import make_plain
from stargan_dist import config as configs
from stargan_dist.config import Config
from stargan_dist.data.index import read_index
from stargan_dist.errors import run_command
from stargan_dist.nets.masks import no_masks
from stargan_dist.objectives.schedules import SCHEDULES
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.runs.scores import Result

DEMO = CONFIGS / "demo.yaml"
STEPS = 820
JUDGED = 5  # checkpoints of a run, unless --every is given


# What is trained.


def demo_config() -> Config:
    """Return the configuration of the demo."""
    return configs.parse(["--config", str(DEMO)])


class Training(NamedTuple):
    """A row of the experiment.

    Attributes:
        schedule: a key of SCHEDULES.
        steps: its length.
        every: steps between judged checkpoints.
        evaluate_every: steps between evaluations.
        rates: a factor of the learning rates.
        decay: the share of the steps from which on the rates decay to 0; 1: they are constant.
    """

    schedule: str
    steps: int
    every: int
    evaluate_every: int
    rates: float = 1.0
    decay: float = 1.0


class Budget(NamedTuple):
    """A training for a share of the FLOPs of one under `published`."""

    schedule: str
    share: float
    rates: float = 1.0
    decay: float = 1.0

    @property
    def row(self) -> str:
        """The name of its row."""
        rates = f"-rates-{self.rates:g}" if self.rates != 1 else ""
        decay = f"-decay-{self.decay:g}" if self.decay != 1 else ""
        return f"{self.schedule}-{self.share:g}{rates}{decay}"


def plan_trainings(args: argparse.Namespace, gflop: Mapping[str, float]) -> dict[str, Training]:
    """Return the trainings by row: all schedules at equal images, then those with a budget."""
    full = {
        name: Training(name, args.steps, args.every, args.evaluate_every) for name in args.schedules
    }
    return full | {
        budget.row: limited_training(budget, args.steps, gflop) for budget in args.budgets
    }


def limited_training(budget: Budget, steps: int, gflop: Mapping[str, float]) -> Training:
    """Return a training with at most its share of the FLOPs of `steps` steps under `published`."""
    ratio = gflop[REFERENCE] / gflop[budget.schedule]
    every = max(int(budget.share * steps * ratio / JUDGED), 1)
    steps = every * JUDGED
    return Training(budget.schedule, steps, every, steps, budget.rates, budget.decay)


# One run.


def training_options(run: Run, training: Training, shards: str) -> list[str]:
    """Return the training's command line: the demo's, with checkpoints to judge."""
    schedule, steps, every, evaluate_every, rates, decay = training
    demo = demo_config().optim
    assert demo.lr is not None
    assert demo.lr_mapping is not None
    settings = {
        "run": run.folder, "seed": run.seed, "steps": steps, "schedule": schedule,
        "loss.ds_iter": steps, "data.shards": shards, "monitor.sample_every": 0,
        "checkpoint.every": every, "checkpoint.keep_every": every, "checkpoint.keep_last": 1,
        "evaluation.every": evaluate_every, "evaluation.protocol": PROTOCOL,
        "optim.lr": rates * demo.lr, "optim.lr_mapping": rates * demo.lr_mapping,
    }  # fmt: skip
    if decay < 1:
        settings |= {"optim.decay_begin": int(decay * steps), "optim.decay_end": steps}
    return command_line([DEMO], settings)


def judge_run(run: Run, steps: int, shards: str) -> Figures:
    """Judge all checkpoints of a trained run."""
    find_last_evaluation(run, steps)  # fails before anything is judged
    steps_of_run = checkpoints.list_steps(str(run.folder))
    return {"checkpoints": [measure(run, step, shards) for step in steps_of_run]}


def measure(run: Run, step: int, shards: str) -> dict[str, float]:
    """Return the figures of a checkpoint."""
    images = step * demo_config().batch_size
    return {
        "step": step,
        "images": images,
        "train_seconds": train_seconds(run.folder, images),
        **combine_measures(judge_checkpoint(run, step, shards), find_evaluation(run, step)),
    }


def combine_measures(judged: dict[str, float], result: Result | None) -> dict[str, float]:
    """Return the measures of a checkpoint; those of an evaluation only if it has one."""
    accuracies = [judged[f"domain_accuracy_{guide}"] for guide in ("latent", "reference")]
    measures = {
        "accuracy_latent": accuracies[0],
        "accuracy_reference": accuracies[1],
        "accuracy": sum(accuracies) / 2,
        "pose_px": judged["pose_error_px"],
        "spread": judged["style_spread_ratio"],
    }
    if result:
        for name in ("demo_fid", "demo_lpips"):
            by_guide = [result["means"][f"{name}_{guide}"] for guide in ("latent", "reference")]
            measures[name] = sum(by_guide) / 2
    return measures


def train_seconds(folder: Path, images: int) -> float:
    """Return the seconds that a run trained until it had seen a number of images.

    They follow from the speed that the run has logged for each interval. Evaluations are left out,
    and so are steps that an interrupted run repeated.
    """
    seconds, seen = 0.0, 0.0
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        scalars = json.loads(line)
        until = min(scalars["progress/images_seen"], images)
        seconds += max(until - seen, 0) / scalars["speed/images_per_second"]
        seen = max(seen, until)
    return seconds


# FLOPs.


@cache
def count_flops(schedules: tuple[str, ...], domains: int) -> dict[str, float]:
    """Count the GFLOP per image of schedules, and of the `literal` iteration, for the demo."""
    model = demo_config().model
    with torch.device("meta"):
        networks = starganv2_networks(domains, model)
        batch = random_batch(model.image_size, domains, 1)
        gflop = {name: count_gflop(networks, batch, no_masks, schedule=name) for name in schedules}
        plain = make_plain(networks)  # changes the networks
        return gflop | {"literal": count_gflop(plain, batch, no_masks, literal=True)}


# The experiment.


def report(runs: Sequence[Run], steps: int, gflop: dict[str, float], out: Path) -> str:
    """Write the table and the charts of all finished runs; returns the table as text."""
    figures = list(finished(runs, steps).values())
    text = table(figures, gflop) + "\n"
    write_atomically(out / "table.md", text.encode())
    content = {
        "steps": steps, "literal_gflop_per_image": gflop["literal"],
        "schedules": summary(figures, gflop), "runs": figures,
    }  # fmt: skip
    write_json(out / "table.json", content)
    draw_charts(panels(figures, gflop)).save(out / "plot.png")
    return text


def parse_budget(text: str) -> Budget:
    """Parse a schedule, a share of FLOPs, and maybe rates and decay, as in `fast:0.5:2:0.6`."""
    schedule, *numbers = text.split(":")
    budget = Budget(schedule, *map(float, numbers))
    if schedule not in SCHEDULES or not min(budget[1:]) > 0 or budget.decay > 1:
        raise ValueError
    return budget


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES),
        metavar="SCHEDULE", help=f"some of {', '.join(SCHEDULES)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--budgets", nargs="*", type=parse_budget, default=[],
        metavar="SCHEDULE:SHARE[:RATES[:DECAY]]",
        help=f"schedules to train also for a share of the FLOPs of {REFERENCE}, with a factor of "
        "the rates, which decay from a share of the steps on (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--every", type=int, help=f"steps between judged checkpoints (default: 1/{JUDGED} of all)"
    )
    parser.add_argument(
        "--evaluate-every", type=int, help="steps between evaluations (default: at the end alone)"
    )
    add_options(parser, seeds=5, steps=STEPS, out="build/schedules")
    args = parse_options(parser, argv)
    args.every = args.every or max(args.steps // JUDGED, 1)
    args.evaluate_every = args.evaluate_every or args.steps
    if min(args.every, args.evaluate_every) < 1:
        parser.error("--every and --evaluate-every must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train, judge and compare."""
    args = parse(argv)
    domains = len(read_index(args.shards).domains)  # fails early if there are no shards
    print("counting FLOPs", flush=True)
    gflop = count_flops(
        tuple(dict.fromkeys((REFERENCE, *args.schedules, *(b.schedule for b in args.budgets)))),
        domains,
    )
    trainings = plan_trainings(args, gflop)
    by_row = {row: gflop[training.schedule] for row, training in trainings.items()}
    by_row["literal"] = gflop["literal"]
    runs = list_runs([*trainings], args.seeds, args.out)
    conduct(
        runs,
        args,
        lambda run: training_options(run, trainings[run.row], args.shards),
        lambda run: judge_run(run, trainings[run.row].steps, args.shards),
        partial(report, runs, args.steps, by_row, args.out),
    )
    print(f"written to {args.out}: table.md, table.json, plot.png")
    print(json.dumps(summary(list(finished(runs, args.steps).values()), by_row)))


if __name__ == "__main__":
    run_command(main)
