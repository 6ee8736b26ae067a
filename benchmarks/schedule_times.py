"""Time trainings of the demo under several schedules, against the published one.

    OMP_NUM_THREADS=1 python benchmarks/schedule_times.py [--schedules fast …] [--rounds 3]
        [--steps 192] [options of stargan_dist.train for all schedules]

Each training is a process of its own on drawn animals, with the sizes of configs/demo.yaml, and
without evaluations and grids. Trainings of the schedules alternate, because the machine's speed
varies. The first half of the steps is not timed. Which quality a schedule keeps after equally many
images is measured by experiments/schedules.py; what it costs is the ratio here.

The last line is JSON: images/s of each schedule, and the time of an image to that under
`published`: medians over rounds, and of the ratios within a round.
"""

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from training import draw_shards, train, words

from stargan_dist.console.tables import format_table
from stargan_dist.objectives.schedules import SCHEDULES

DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
PUBLISHED = "published"
IMAGES, SIZE = 300, 32  # per species, and pixels

Rates = dict[str, float]  # images/s by schedule


def time_training(schedule: str, shards: Path, run: Path, steps: int, options: list[str]) -> float:
    """Return the images/s of the second half of a training."""
    settings: dict[str, object] = {
        "data.shards": shards, "schedule": schedule, "steps": steps, "loss.ds_iter": steps,
        "evaluation.every": 0, "checkpoint.every": steps, "monitor.sample_every": 0,
        "monitor.log_every": steps // 4, "monitor.trackers": "[]",
    }  # fmt: skip
    logged = train(run, ["--config", str(DEMO), *words(settings), *options])
    images = [scalars["progress/images_seen"] for scalars in logged[-3:]]
    rates = [scalars["speed/images_per_second"] for scalars in logged[-2:]]
    intervals = [end - begin for begin, end in pairwise(images)]
    return sum(intervals) / sum(n / rate for n, rate in zip(intervals, rates, strict=True))


def summary(rounds: list[Rates]) -> dict[str, Rates]:
    """Return the last line."""
    names = [*rounds[0]]
    return {
        "images_per_second": {n: round(median(r[n] for r in rounds), 1) for n in names},
        "seconds_to_published": {
            n: round(median(r[PUBLISHED] / r[n] for r in rounds), 3) for n in names
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    others = [name for name in SCHEDULES if name != PUBLISHED]
    parser.add_argument("--schedules", nargs="+", choices=others, default=others, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, help="of all schedules (default: 3)")
    parser.add_argument(
        "--steps", type=int, default=192, help="of a training, a multiple of 96 (default: 192)"
    )
    args, options = parser.parse_known_args()
    rounds: list[Rates] = []
    with tempfile.TemporaryDirectory() as temporary:
        shards = draw_shards(Path(temporary), IMAGES, SIZE)
        for number in range(args.rounds):
            rounds.append({})
            for name in (PUBLISHED, *args.schedules):
                run = Path(temporary, f"{name}-{number}")
                rounds[-1][name] = time_training(name, shards, run, args.steps, options)
    figures = summary(rounds)
    rows = [["schedule", "images/s", "seconds to published"]]
    rows += [[n, *(str(figure[n]) for figure in figures.values())] for n in rounds[0]]
    print("\n" + format_table(rows, left=[0]))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
