"""Driver: a training whose rank 1 differs from rank 0.

Usage: python differing.py …options of stargan_dist.train
RANK_1_OPTIONS: further options of rank 1.
FOLDERS: each rank works in its own folder there, of its number.
RANK_1_SEES: the step that rank 1 would resume from, as on a network filesystem out of date.
"""

import os
import sys

from stargan_dist.errors import run_command
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.train import main

if __name__ == "__main__":
    if "FOLDERS" in os.environ:
        os.chdir(f"{os.environ['FOLDERS']}/{os.environ['RANK']}")
    if os.environ["RANK"] == "1":
        sys.argv += os.environ.get("RANK_1_OPTIONS", "").split()
        if "RANK_1_SEES" in os.environ:
            checkpoints._latest_step = lambda *_: int(os.environ["RANK_1_SEES"])
    run_command(main)
