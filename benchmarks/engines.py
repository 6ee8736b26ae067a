"""Measure each engine and precision: images/s, memory, bytes sent between processes.

    OMP_NUM_THREADS=1 python benchmarks/engines.py [--size 64] [--batch 2] [--rows ddp "zero 1" …]

Each row is an engine with its options. It trains on random images, at full width by default, first
in one process and then in two. The batch is per process, so two processes train on twice as many
images (weak scaling). Prints one line of JSON per row and number of processes: images/s of the
median iteration, the peak memory of a process (the largest over processes), and the bytes that a
process sends per iteration by the counters of the network interfaces. Traffic between GPUs of one
machine does not pass these. The last line has the images/s of two processes over twice those of
one, for each row.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from inputs import random_batch

from stargan_dist import config as configs
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.objectives.recipes import resolve
from stargan_dist.training.environment import peak_memory_bytes
from stargan_dist.training.trainer import initialise

DOMAINS = 3
ZERO = ["--engine.name", "deepspeed", "--engine.zero_stage"]
ROWS = {
    "ddp": [],
    "ddp bfloat16": ["--precision", "bfloat16"],
    "ddp bfloat16 compiled": ["--precision", "bfloat16", "--engine.compile", "true"],
    "ddp 2 micro-batches": ["--engine.accumulate", "2"],
    "zero 0": [*ZERO, "0"],
    "zero 1": [*ZERO, "1"],
    "zero 1 bfloat16": [*ZERO, "1", "--precision", "bfloat16"],
    "zero 1 offloaded": [*ZERO, "1", "--engine.offload_optimizer", "true"],
    "zero 2": [*ZERO, "2"],
    "ddp summed": ["--schedule", "summed"],
    "zero 3 summed": [*ZERO, "3", "--schedule", "summed"],
}
DEFAULT_ROWS = [name for name in ROWS if "compiled" not in name]  # compiling takes minutes on a CPU


def sent_bytes() -> int:
    """Return the bytes that this machine's network interfaces have sent, including the loopback."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return sum(int(line.partition(":")[2].split()[8]) for line in lines)


def run_rank(
    out: str, size: int, width: int, batch: int, iterations: int, options: list[str]
) -> None:
    """Train in one process of a row; rank 0 writes the figures to `out`."""
    world = World()
    base = ["--run", "r", "--data.shards", "s", "--batch_size", str(batch * world.size)]
    base += ["--model.image_size", str(size), "--model.base_width", str(width)]
    config = configs.parse([*base, *options])
    labels = domain_labels([str(number) for number in range(DOMAINS)])
    state, engine = initialise(resolve(config), labels, world)
    torch.manual_seed(world.rank)
    whole = random_batch(size, DOMAINS, batch).to(world.device, torch.float32)
    micro_batches = whole.split(config.engine.accumulate)
    seconds = []
    for iteration in range(1 + iterations):
        world.barrier()
        if iteration <= 1:  # the first iteration is not counted
            sent = float(sent_bytes())
        start = time.perf_counter()
        terms = state.objective.iterate(engine, micro_batches, step=0)
        state.update_averages(engine, step=0)
        world.all_reduce_mean(terms)  # waits for the device
        seconds.append(time.perf_counter() - start)
    world.barrier()
    sent = (sent_bytes() - sent) / iterations / world.size
    memory = max(world.all_gather(peak_memory_bytes(world.device)))
    if world.is_main:
        row = {
            "processes": world.size,
            "images_per_second": round(batch * world.size / statistics.median(seconds[1:]), 3),
            "peak_gib": round(memory / 2**30, 2),
            "sent_mib_per_iteration": round(sent / 2**20, 1) if world.size > 1 else 0.0,
        }
        Path(out).write_text(json.dumps(row))
    engine.close()
    world.close()


def measure(name: str, processes: int, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run a row in one or several processes and return its figures."""
    print(f"running {name} in {processes} process(es)", file=sys.stderr, flush=True)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "stargan_dist.launch", "--multi_gpu", "--num_processes"]
        launcher += [str(processes), "--main_process_port", "0", "--num_machines", "1"]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    sizes = [args.size, args.width, args.batch, args.iterations]
    command = [*launcher, __file__, "--rank", str(out), *map(str, sizes), *ROWS[name]]
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # DDP warns on every rank of unused parameters
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | quiet)
    return {"row": name, **json.loads(out.read_text())}


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        out, size, width, batch, iterations, *options = sys.argv[2:]
        run_rank(out, int(size), int(width), int(batch), int(iterations), options)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="image size in pixels (default: 64)")
    parser.add_argument("--width", type=int, default=0, help="base width (default: the paper's)")
    parser.add_argument("--batch", type=int, default=2, help="images per process (default: 2)")
    parser.add_argument("--iterations", type=int, default=3, help="timed per row (default: 3)")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=[*ROWS],
        default=DEFAULT_ROWS,
        metavar="ROW",
        help=f"engines with their options, of: {', '.join(ROWS)} (default: all but compiled ones)",
    )
    args = parser.parse_args()
    scaling = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows:
            rows = [measure(name, n, args, Path(folder) / "row.json") for n in (1, 2)]
            for row in rows:
                print(json.dumps(row), flush=True)
            one, two = (row["images_per_second"] for row in rows)
            scaling[name] = round(two / one / 2, 3)
    print(json.dumps({"weak_scaling_1_to_2": scaling}))


if __name__ == "__main__":
    main()
