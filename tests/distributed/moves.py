"""Driver: save checkpoints with each engine, or resume from those of other engines.

Usage: launcher … moves.py FOLDER [SOURCE …]
Environment: ENGINES, the engines to run; default: all.
Without sources, every engine trains two iterations and writes FOLDER/ENGINE_PROCESSES. With
sources, every engine restores each source, saves it again as step 2 of
FOLDER/SOURCE-to-ENGINE_PROCESSES, and saves step 3 after one more iteration.
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
SUMMED_ENGINES = {"ddp-summed": SUMMED, "zero3-summed": zero(3, *SUMMED, *RELEASED)}


def same_schedule(engine, source):
    """Return whether engine and source use the same schedule, which is fixed for a run."""
    return engine.endswith("-summed") == source.split("_")[0].endswith("-summed")


METADATA = {"config": {}, "domains": ["a", "b", "c"], "data": ""}


def save(training, engine, world, run, step):
    state = training.snapshot(engine, keep=world.is_main)
    if state:
        checkpoints.save(run, step, state, METADATA)


def main():
    folder, *sources = sys.argv[1:]
    world = World()
    all_engines = ENGINES | SUMMED_ENGINES
    for name in os.environ.get("ENGINES", " ".join(all_engines)).split():
        options = all_engines[name]
        target = f"{name}_{world.size}"
        if not sources:
            training, engine = begin(options, world)
            iterate(training, engine, world, range(2))
            save(training, engine, world, f"{folder}/{target}", 2)
            engine.close()
        for source in filter(partial(same_schedule, name), sources):
            saved = checkpoints.find(f"{folder}/{source}").state()
            training, engine = begin(options, world, saved)
            save(training, engine, world, f"{folder}/{source}-to-{target}", 2)
            iterate(training, engine, world, [2])
            save(training, engine, world, f"{folder}/{source}-to-{target}", 3)
            engine.close()
    world.close()


if __name__ == "__main__":
    main()
