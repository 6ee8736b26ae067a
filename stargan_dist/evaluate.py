"""Command line of evaluation: `python -m stargan_dist.evaluate --run RUN`.

Translates every validation image into every other domain, ten times by latents and ten times by
references, and reports what needs no pretrained network (see metrics/thumbnails.py): the results
go to RUN/evaluation/step_NNNNNNNN.json and to a table.
"""

import argparse
import json
from typing import Any

import torch

from stargan_dist import access, storage
from stargan_dist.checkpoint import step_name
from stargan_dist.data.reader import LoadedSplit, check_split, load_split, open_reader
from stargan_dist.engine import launched_world_size
from stargan_dist.errors import UserError, run_command
from stargan_dist.metrics import thumbnails
from stargan_dist.metrics.protocol import GUIDES, OUTPUTS, Task, outputs, tasks
from stargan_dist.progress import Progress
from stargan_dist.translate import Translator

PROTOCOL = "thumbnails"


def evaluate_task(
    translator: Translator, task: Task, train: LoadedSplit, val: LoadedSplit, seed: int
) -> dict[str, Any]:
    """One row of the results."""
    distance = thumbnails.frechet(train.of(task.target))
    diversities = []
    for fakes in outputs(translator, task, val, seed):
        if not bool(fakes.isfinite().all()):
            raise UserError(f"{translator.url} makes images that are not finite: training diverged")
        distance.update(thumbnails.rounded(fakes), real=False)
        diversities.append(thumbnails.diversity_l1(fakes))
    return {
        "guide": task.guide,
        "source": val.domains[task.source],
        "target": val.domains[task.target],
        "sources": len(diversities),
        "thumbnail_fd": float(distance.compute()),
        "diversity_l1": sum(diversities) / len(diversities),
    }


def real_floor(train: LoadedSplit, val: LoadedSplit) -> dict[str, float]:
    """The distance of real validation images from real training images, for each domain."""
    floor = {}
    for label, domain in enumerate(val.domains):
        distance = thumbnails.frechet(train.of(label))
        distance.update(val.of(label), real=False)
        floor[domain] = float(distance.compute())
    return floor


def evaluate(translator: Translator, seed: int) -> dict[str, Any]:
    """All tasks of a checkpoint. `score` is the mean distance, lower is better.

    Raises:
        UserError: a domain has fewer than two validation images.
    """
    config = translator.config
    readers = [open_reader(config.data, split) for split in ("train", "val")]
    check_split(readers[1].index, "val", 2, config.data.shards)
    train, val = (load_split(reader, config.model.image_size) for reader in readers)
    rows = []
    todo = tasks(len(val.domains))
    progress = Progress(len(todo), "tasks", what="evaluating")
    for task in todo:
        rows.append(evaluate_task(translator, task, train, val, seed))
        progress.advance(1)
    progress.close()
    means = {
        f"{metric}_{guide}": _mean(row[metric] for row in rows if row["guide"] == guide)
        for metric in ("thumbnail_fd", "diversity_l1")
        for guide in GUIDES
    }
    return {
        "protocol": PROTOCOL,
        "step": translator.step,
        "checkpoint": translator.url,
        "data": readers[0].index.fingerprint,
        "seed": seed,
        "outputs_per_source": OUTPUTS,
        "score": _mean(row["thumbnail_fd"] for row in rows),
        **means,
        "real_thumbnail_fd": real_floor(train, val),
        "tasks": rows,
    }


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def table(result: dict[str, Any]) -> str:
    """The results for people."""
    lines = [f"{'guide':12}{'task':24}{'thumbnail_fd':>14}{'diversity_l1':>14}"]
    for row in result["tasks"]:
        name = f"{row['source']} → {row['target']}"
        lines.append(
            f"{row['guide']:12}{name:24}{row['thumbnail_fd']:>14.4f}{row['diversity_l1']:>14.4f}"
        )
    for guide in GUIDES:
        fd, diversity = result[f"thumbnail_fd_{guide}"], result[f"diversity_l1_{guide}"]
        lines.append(f"{guide:12}{'mean':24}{fd:>14.4f}{diversity:>14.4f}")
    for domain, distance in result["real_thumbnail_fd"].items():
        lines.append(f"{'real':12}{domain:24}{distance:>14.4f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.evaluate",
        description=__doc__.split("\n\n")[1],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--run", required=True, help="folder or URL of a training run")
    parser.add_argument("--checkpoint", default="latest", help="latest, best, or a step")
    parser.add_argument("--seed", type=int, default=0, help="of latents and references")
    args = parser.parse_args()
    if launched_world_size() > 1:
        raise UserError("evaluation runs in one process: `python -m stargan_dist.evaluate …`")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    translator = Translator.load(args.run, args.checkpoint, device)
    access.use(translator.config.storage)
    result = evaluate(translator, args.seed)
    where = storage.join(args.run, "evaluation", f"{step_name(translator.step)}.json")
    storage.write_bytes(where, json.dumps(result, indent=1).encode())
    print(table(result))
    print(f"step {translator.step}, protocol {PROTOCOL}, written to {where}")


if __name__ == "__main__":
    run_command(main)
