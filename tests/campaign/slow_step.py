"""Driver: a training in which one step takes long.

Usage: SLOW_STEP=n SLOW_SECONDS=s SLOW_FILE=path python slow_step.py …options of stargan_dist.train
The file is created when the step begins, by every rank.
"""

import os
import time
from pathlib import Path

from stargan_dist.errors import run_command
from stargan_dist.train import main
from stargan_dist.training.train_state import TrainState


def install() -> None:
    original, calls = TrainState.update_averages, []

    def update_averages(*args, **kwargs):
        calls.append(None)
        if len(calls) == int(os.environ["SLOW_STEP"]):
            Path(os.environ["SLOW_FILE"]).touch()
            time.sleep(float(os.environ["SLOW_SECONDS"]))
        return original(*args, **kwargs)

    TrainState.update_averages = update_averages


if __name__ == "__main__":
    install()
    run_command(main)
