"""Time an iteration in mixed precision, at full width.

    python benchmarks/precision.py [--size 64] [--batch 2] [--repeats 3] [--policy bfloat16_most]

Each case is a whole iteration on random images, optimizers included: in float32, then with one more
network in the dtype of the policy at a time, and last with the whole policy. All cases use the same
networks and alternate, so other load on the machine affects them alike. The first repeat is not
counted. Prints one line of JSON per case: the seconds of its fastest and of its median iteration,
and how many times faster than in float32 the fastest is (other load can only add time). The first
line is JSON about the device: a CPU's instructions, and how much longer a convolution takes there
in bfloat16 than in float32 (CPUs without instructions for bfloat16: above 1).
"""

import argparse
import json
import statistics
import time

import torch
from inputs import model_of_size, random_batch, starganv2_networks

from stargan_dist.config import Config
from stargan_dist.console.progress import progress_bar
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.engines.base import TrainedParts
from stargan_dist.engines.ddp import DDP
from stargan_dist.nets.precision import POLICIES, Policy, set_precision
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipes import ADAM_V2, TABLE
from stargan_dist.training.environment import times_slower
from stargan_dist.training.train_state import build_optimizers

DOMAINS = 3
LETTERS = "GFED"  # of StarGAN v2's networks


def policies_up_to(name: str) -> dict[str, Policy]:
    """Return float32, and policies that each take one more network's dtype from the named one."""
    policy, policies = POLICIES["float32"], {"float32": POLICIES["float32"]}
    fields = [
        field
        for field in Policy._fields
        if field in LETTERS and getattr(POLICIES[name], field) != getattr(policy, field)
    ]
    for i, field in enumerate(fields, 1):
        policy = policy._replace(**{field: getattr(POLICIES[name], field)})
        policies[" + ".join(fields[:i]) if i < len(fields) else name] = policy
    return policies


def time_policies(
    policies: dict[str, Policy], size: int, batch_size: int, repeats: int
) -> dict[str, list[float]]:
    """Return the seconds of every counted iteration, by policy."""
    torch.manual_seed(0)
    world, networks = World(), starganv2_networks(DOMAINS, model_of_size(size))
    for network in networks.values():
        network.to(world.device)
    objective = Objective(TABLE["f"], networks, domain_labels([""] * DOMAINS))
    parts = TrainedParts(objective.loss_modules, networks, build_optimizers(networks, ADAM_V2))
    engine = DDP(parts, Config(), world)
    batch = random_batch(size, DOMAINS, batch_size).to(world.device, torch.float32)
    seconds: dict[str, list[float]] = {name: [] for name in policies}
    progress = progress_bar((1 + repeats) * len(policies), "iterations", description="timing")
    for _ in range(1 + repeats):
        for name, policy in policies.items():
            set_precision(networks, policy)
            start = time.perf_counter()
            terms = objective.iterate(engine, [batch], step=0)
            world.all_reduce_mean(terms)  # waits for the device
            seconds[name].append(time.perf_counter() - start)
            progress.update(1)
    progress.close()
    engine.close()
    world.close()
    return {name: values[1:] for name, values in seconds.items()}


def describe_device() -> dict[str, object]:
    """Return the kind of machine."""
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name()}
    ratio = round(times_slower(torch.bfloat16, torch.float32), 2)
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"device": "CPU", "instructions": instructions, "bfloat16_times_slower": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="image size in pixels (default: 64)")
    parser.add_argument("--batch", type=int, default=2, help="images per iteration (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="of each case (default: 3)")
    parser.add_argument(
        "--policy",
        choices=[*POLICIES],
        default="bfloat16_most",
        help="precision to compare with float32 (default: bfloat16_most)",
    )
    args = parser.parse_args()
    print(json.dumps(describe_device()), flush=True)
    results = time_policies(policies_up_to(args.policy), args.size, args.batch, args.repeats)
    for name, seconds in results.items():
        row = {
            "lowered": name,
            "fastest_seconds": round(min(seconds), 3),
            "median_seconds": round(statistics.median(seconds), 3),
            "times_faster": round(min(results["float32"]) / min(seconds), 3),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
