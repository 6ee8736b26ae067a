"""Command line of evaluation: `accelerate launch -m stargan_dist.evaluate --run RUN`.

Translates every validation image into every other domain, ten times by latents and ten times by
references, on all processes, and compares the outputs with the training images of the domain.
Results are written to RUN/evaluation/PROTOCOL/ and TensorBoard, and printed as a table. Existing
results are not measured again. --compare measures nothing: it prints the results of runs side by
side.

A set of pairs (stargan_dist.pairs) is evaluated as one translator between all of its domains, at
the last step of which every pair has a checkpoint.

Exit codes: 0 everything is measured; 2 a user error, or tasks that could not be measured.
"""

import argparse
import dataclasses
import json
import os

from stargan_dist import storage
from stargan_dist.config import Config
from stargan_dist.console.arguments import integer
from stargan_dist.console.logs import setup_logging
from stargan_dist.distributed.world import World
from stargan_dist.errors import USER_ERROR, run_command
from stargan_dist.evaluation import compare, report, results
from stargan_dist.evaluation.evaluator import Evaluator
from stargan_dist.evaluation.results import Result
from stargan_dist.inference.model import TrainedModel
from stargan_dist.inference.pairs import AnyModel, PairModels
from stargan_dist.launch.launcher import launcher_hides_exit_codes, stop_with_launcher
from stargan_dist.launch.launcher_settings import take_settings
from stargan_dist.models import pairs
from stargan_dist.runs import checkpoint as checkpoints


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stargan_dist.evaluate", description=__doc__.split("\n\n")[1]
    )
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--run", help="folder or URL of a training run, or of a set of pairs")
    mode.add_argument("--compare", nargs="+", metavar="RUN", help="print the results of runs")
    parser.add_argument(
        "--checkpoint", default="latest", help="latest, best, or a step (default: latest)"
    )
    parser.add_argument(
        "--seed", type=integer(0), default=0, help="seed of latents and references (default: 0)"
    )
    parser.add_argument(
        "--repeat", type=integer(1), default=1, metavar="N",
        help="evaluate with N seeds, beginning with --seed (default: 1)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    overrides = parser.add_argument_group("overrides of the run's configuration (evaluation.*)")
    overrides.add_argument("--protocol", choices=("paper", "clean", "demo"))
    overrides.add_argument(
        "--labels", action="store_true", default=None,
        help="classification errors of single labels, where the labels are domains as well",
    )  # fmt: skip
    overrides.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="precision of the generator"
    )
    overrides.add_argument("--cache", help="folder or URL for the statistics of real images")
    overrides.add_argument(
        "--inception-weights", metavar="FILE", help="weights of Inception instead of a download"
    )
    overrides.add_argument(
        "--alexnet-weights", metavar="FILE", help="weights of AlexNet instead of a download"
    )
    return parser.parse_args()


def override_config(config: Config, args: argparse.Namespace) -> Config:
    """Return the run's configuration with its current location and the command line's overrides."""
    names = [field.name for field in dataclasses.fields(config.evaluation)]
    options = {name: getattr(args, name, None) for name in names}
    overrides = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(
        config, run=args.run, evaluation=dataclasses.replace(config.evaluation, **overrides)
    )


def find_step(args: argparse.Namespace) -> tuple[bool, int]:
    """Return whether the run is a set of pairs, and the step to evaluate."""
    if pairs.is_set(args.run):
        return True, pairs.find_step(args.run, args.checkpoint)
    return False, checkpoints.find_existing(args.run, args.checkpoint, args.protocol).step


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate on all ranks and print on rank 0. Return the exit code."""
    world = World()
    try:
        # Only rank 0 resolves the step: `latest` of a run in training moves.
        is_set, step = world.broadcast_from_main(lambda: find_step(args))
        translator: AnyModel = world.run_on_all_ranks(
            lambda: (
                PairModels(args.run, step, world.device)
                if is_set
                else TrainedModel.load(args.run, str(step), world.device)
            )
        )
        config = override_config(translator.config, args)
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
    """Write results to TensorBoard, and print them as tables or JSON."""
    for result in measured:
        seed = f"_seed_{result['seed']}" if result["seed"] else ""
        report.log_to_tensorboard(args.run, result, results.protocol_variant(result) + seed)
    if args.json:
        print(json.dumps(measured, ensure_ascii=False))
        return
    for result in measured:
        print(report.headline(result), report.table(result), sep="\n", end="\n\n")
    if len(measured) > 1:
        print(f"mean ± sample deviation over seeds\n{report.table_over_seeds(measured)}\n")
    print("written to", results.result_url(args.run, measured[0]))


def main() -> int:
    stop_with_launcher()
    take_settings(os.environ)  # they are about training
    setup_logging()
    args = parse_args()
    if args.run:
        return evaluate(args)
    if int(os.environ.get("RANK", "0")):
        return 0
    groups = compare.comparable_groups(args.compare)
    print(json.dumps(groups, ensure_ascii=False) if args.json else compare.table(groups))
    return 0


if __name__ == "__main__":
    run_command(main, launcher_hides_exit_codes)
