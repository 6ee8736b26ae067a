"""Command line of evaluation: `accelerate launch -m stargan_dist.evaluate --run RUN`.

Translates every validation image into every other domain, ten times by latents and ten times by
references, on all processes, and compares the outcome with the training images of the domain.
Results go to RUN/evaluation/PROTOCOL/, to TensorBoard and to a table. What was measured before is
not measured again. With --compare nothing is measured: results of runs are shown side by side.

Exit codes: 0 all is measured; 2 a mistake, or tasks that could not be measured.
"""

import argparse
import dataclasses
import json
import os

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.distributed.world import World
from stargan_dist.errors import USER_ERROR, run_command
from stargan_dist.evaluation import compare, results
from stargan_dist.evaluation.evaluator import Evaluator
from stargan_dist.evaluation.results import Result
from stargan_dist.inference.translator import Translator
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.training import metric_logger


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.evaluate", description=__doc__.split("\n\n")[1]
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="folder or URL of a training run")
    what.add_argument("--compare", nargs="+", metavar="RUN", help="show the results of runs")
    parser.add_argument(
        "--checkpoint", default="latest", help="latest (unless given), best or a step"
    )
    parser.add_argument("--seed", type=int, default=0, help="of latents and references (0)")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="seeds, from --seed on")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    own = parser.add_argument_group("instead of what the run's configuration says (evaluation.*)")
    own.add_argument("--protocol", choices=("paper", "clean", "demo"))
    own.add_argument("--precision", choices=("float32", "bfloat16"), help="of the generator")
    own.add_argument("--cache", help="folder or URL for the statistics of real images")
    own.add_argument("--inception-weights", metavar="FILE", help="instead of a download")
    own.add_argument("--alexnet-weights", metavar="FILE", help="instead of a download")
    args = parser.parse_args()
    if args.repeat < 1 or args.seed < 0:
        parser.error("--repeat must be at least 1, --seed not negative")
    return args


def overridden(config: Config, args: argparse.Namespace) -> Config:
    """The run's configuration, where the run lies now, with what the command line gives."""
    names = [field.name for field in dataclasses.fields(config.evaluation)]
    given = {name: getattr(args, name, None) for name in names}
    evaluation = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(
        config, run=args.run, evaluation=dataclasses.replace(config.evaluation, **evaluation)
    )


def evaluate(args: argparse.Namespace) -> int:
    """Measure on all ranks; rank 0 tells. Returns the exit code."""
    world = World()
    try:
        # Rank 0 alone looks which: `latest` of a run in training moves.
        step = world.broadcast_from_main(
            lambda: checkpoints.find_existing(args.run, args.checkpoint, args.protocol).step
        )
        translator = world.run_on_all_ranks(
            lambda: Translator.load(args.run, str(step), world.device)
        )
        config = overridden(translator.config, args)
        storage.configure(config.storage)
        world.broadcast_from_main(lambda: storage.check_writable(args.run))
        evaluator = Evaluator(config, world)
        seeds = range(args.seed, args.seed + args.repeat)
        measured = [evaluator.evaluate(translator, seed) for seed in seeds]
        if world.is_main:
            show(args, measured)
        complete = all(result["score"] is not None for result in measured)
        return 0 if world.broadcast_from_main(lambda: complete) else USER_ERROR
    except Exception as error:
        raise world.report_error(error) from error
    finally:
        world.close()


def show(args: argparse.Namespace, measured: list[Result]) -> None:
    """To TensorBoard, and as tables or JSON."""
    for result in measured:
        seed = f"_seed_{result['seed']}" if result["seed"] else ""
        metric_logger.show_result(args.run, result, results.label(result) + seed)
    if args.json:
        print(json.dumps(measured, ensure_ascii=False))
        return
    for result in measured:
        print(results.headline(result), results.table(result), sep="\n", end="\n\n")
    if len(measured) > 1:
        print(f"mean ± sample deviation over seeds\n{results.repeated(measured)}\n")
    print("written to", results.place(args.run, measured[0]))


def main() -> int:
    args = parse_args()
    if args.run:
        return evaluate(args)
    if int(os.environ.get("RANK", "0")):
        return 0
    found = compare.find(args.compare)
    print(json.dumps(found, ensure_ascii=False) if args.json else compare.table(found))
    return 0


if __name__ == "__main__":
    run_command(main)
