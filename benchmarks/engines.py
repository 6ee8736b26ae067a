"""What each engine and precision costs: images/s, memory, bytes between processes.

    OMP_NUM_THREADS=1 python benchmarks/engines.py [--size 64] [--batch 2] [--rows ddp zero1 …]

Starts one world after the other, of one process and of two, and has each train on random images
at full width. The batch is that of each process, so with two processes twice as many images are
trained on (weak scaling). One line of JSON for a row: images/s of the median iteration, the
largest memory of a process, and what a process sends per iteration by the counters of the
network interfaces (on GPUs that share a machine nothing passes these). Last line: the images/s
of two processes over twice those of one, for each row.
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
from precision import DOMAINS, make_batch

from stargan_dist import config as configs
from stargan_dist.data.labels import domain_labels
from stargan_dist.distributed.world import World
from stargan_dist.objectives.recipes import resolve
from stargan_dist.training.environment import peak_memory_bytes
from stargan_dist.training.trainer import initialise

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


QUICK = [name for name in ROWS if "compiled" not in name]  # compiling takes minutes on a CPU


def sent_bytes() -> int:
    """What left this machine's network interfaces so far, the loopback among them."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return sum(int(line.partition(":")[2].split()[8]) for line in lines)


def work(out: str, size: int, width: int, batch: int, iterations: int, options: list[str]) -> None:
    """One process of a row; rank 0 writes the figures."""
    world = World()
    base = ["--run", "r", "--data.shards", "s", "--batch_size", str(batch * world.size)]
    base += ["--model.image_size", str(size), "--model.base_width", str(width)]
    config = configs.parse([*base, *options])
    domains = [str(number) for number in range(DOMAINS)]
    training, engine = initialise(resolve(config), domain_labels(domains), world)
    torch.manual_seed(world.rank)
    micro_batches = make_batch(size, batch, world.device).split(config.engine.accumulate)
    seconds = []
    for iteration in range(1 + iterations):
        world.barrier()
        if iteration <= 1:  # the first one is not counted
            sent = float(sent_bytes())
        began = time.perf_counter()
        terms = training.objective.iterate(engine, micro_batches, step=0)
        training.update_averages(engine)
        world.all_reduce_mean(terms)  # waits for the device
        seconds.append(time.perf_counter() - began)
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


def start(name: str, processes: int, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes"]
        launcher += [str(processes), "--main_process_port", "0", "--num_machines", "1"]
        launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    sizes = [args.size, args.width, args.batch, args.iterations]
    command = [*launcher, __file__, "--work", str(out), *map(str, sizes), *ROWS[name]]
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # DDP tells every rank of its unused parameters
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | quiet)
    return {"row": name, **json.loads(out.read_text())}


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        out, size, width, batch, iterations, *options = sys.argv[2:]
        work(out, int(size), int(width), int(batch), int(iterations), options)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="image size, pixels")
    parser.add_argument("--width", type=int, default=0, help="base width; 0: the paper's")
    parser.add_argument("--batch", type=int, default=2, help="images of each process")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=QUICK)
    args = parser.parse_args()
    scaling = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.rows:
            rows = [start(name, n, args, Path(folder) / "row.json") for n in (1, 2)]
            for row in rows:
                print(json.dumps(row), flush=True)
            one, two = (row["images_per_second"] for row in rows)
            scaling[name] = round(two / one / 2, 3)
    print(json.dumps({"weak_scaling_1_to_2": scaling}))


if __name__ == "__main__":
    main()
