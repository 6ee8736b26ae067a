"""How long an iteration takes in mixed precision, at full width.

    python benchmarks/precision.py [--size 64] [--batch 2] [--repeats 3] [--policy bfloat16_most]

Whole iterations, optimizers included, on random images: in float32, with the policy's parts added
one by one, and with the policy. The same networks serve all, and the rows take turns, so that
whatever else the machine does meets them alike. The first turn is not counted. One line of JSON
per row: the seconds of its fastest iteration and of the median one, and how many times faster
than float32 the fastest is (whatever else the machine does only adds).
"""

import argparse
import json
import statistics
import time

import torch

from stargan_dist.config import ClipConfig
from stargan_dist.data.batch import Batch
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.engines.base import TrainedParts
from stargan_dist.engines.ddp import DDP
from stargan_dist.nets.precision import POLICIES, Policy
from stargan_dist.nets.v2 import build_networks
from stargan_dist.objectives.objective import Objective
from stargan_dist.objectives.recipes import ADAM_V2, TABLE
from stargan_dist.training.train_state import build_optimizers

DOMAINS = 3


def rows(name: str) -> dict[str, Policy]:
    """float32, and the policy's parts, one more in each row."""
    policy, found = POLICIES["float32"], {"float32": POLICIES["float32"]}
    parts = [
        part for part in Policy._fields if getattr(POLICIES[name], part) != getattr(policy, part)
    ]
    for i, part in enumerate(parts, 1):
        policy = policy._replace(**{part: getattr(POLICIES[name], part)})
        found[" + ".join(parts[:i]) if i < len(parts) else name] = policy
    return found


def make_batch(size: int, count: int, device: torch.device) -> Batch:
    """Random images, domains and latents."""
    x, x_ref, x_ref2 = torch.empty(3, count, 3, size, size).uniform_(-1, 1)
    y, y_trg = torch.randint(DOMAINS, (2, count))
    z, z2 = torch.randn(2, count, 16)
    return Batch(x, y, x_ref, x_ref2, y_trg, z, z2, torch.rand(count)).to(device, torch.float32)


def measure(
    policies: dict[str, Policy], size: int, count: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every counted iteration, by row."""
    torch.manual_seed(0)
    world, networks = World(), build_networks(DOMAINS, size)
    for network in networks:
        network.to(world.device)
    by_letter = networks._asdict()
    objective = Objective(TABLE["f"], by_letter, domain_labels([""] * DOMAINS))
    parts = TrainedParts(objective.loss_modules, by_letter, build_optimizers(by_letter, ADAM_V2))
    engine = DDP(parts, ClipConfig(), {}, world)
    batch = make_batch(size, count, world.device)
    seconds: dict[str, list[float]] = {name: [] for name in policies}
    for _ in range(1 + repeats):
        for name, policy in policies.items():
            networks.set_precision(policy)
            begin = time.perf_counter()
            terms = objective.iterate(engine, [batch], step=0)
            world.all_reduce_mean(terms)  # waits for the device
            seconds[name].append(time.perf_counter() - begin)
    engine.close()
    world.close()
    return {name: taken[1:] for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="image size, pixels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--policy", choices=[*POLICIES], default="bfloat16_most")
    args = parser.parse_args()
    taken = measure(rows(args.policy), args.size, args.batch, args.repeats)
    for name, seconds in taken.items():
        row = {
            "lowered": name,
            "fastest_seconds": round(min(seconds), 3),
            "median_seconds": round(statistics.median(seconds), 3),
            "times_faster": round(min(taken["float32"]) / min(seconds), 3),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
