"""Has each engine save what it has after two iterations, or go on from what others have saved.

Usage: launcher … moves.py FOLDER [SOURCE …]
In the environment: ENGINES, those to run.
Without sources every engine writes FOLDER/ENGINE_PROCESSES. With them it restores each source,
saves that again as step 2 of FOLDER/SOURCE-to-ENGINE_PROCESSES, and one iteration later step 3.
"""

import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from stargan_dist.distributed.world import World
from stargan_dist.runs import checkpoint as checkpoints
from tests.distributed.engines import RELEASED, SUMMED, begin, iterate, zero

ENGINES = {"ddp": [], "zero1": zero(1), "zero2": zero(2)}
OF_THE_SUMMED_SCHEDULE = {"ddp-summed": SUMMED, "zero3-summed": zero(3, *SUMMED, *RELEASED)}


def alike(engine, source):
    """Whether they are of one schedule: a run keeps the one it began with."""
    return engine.endswith("-summed") == source.split("_")[0].endswith("-summed")


FACTS = {"config": {}, "domains": ["a", "b", "c"], "data": ""}


def save(training, engine, world, run, step):
    state = training.snapshot(engine, keep=world.is_main)
    if state:
        checkpoints.save(run, step, state, FACTS)


def main():
    folder, *sources = sys.argv[1:]
    world = World()
    everything = ENGINES | OF_THE_SUMMED_SCHEDULE
    for name in os.environ.get("ENGINES", " ".join(everything)).split():
        options = everything[name]
        here = f"{name}_{world.size}"
        if not sources:
            training, engine = begin(options, world)
            iterate(training, engine, world, range(2))
            save(training, engine, world, f"{folder}/{here}", 2)
            engine.close()
        for source in filter(partial(alike, name), sources):
            saved = checkpoints.find(f"{folder}/{source}").state()
            training, engine = begin(options, world, saved)
            save(training, engine, world, f"{folder}/{source}-to-{here}", 2)
            iterate(training, engine, world, [2])
            save(training, engine, world, f"{folder}/{source}-to-{here}", 3)
            engine.close()
    world.close()


if __name__ == "__main__":
    main()
