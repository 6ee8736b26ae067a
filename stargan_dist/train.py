"""Command line of training: `accelerate launch -m stargan_dist.train --config configs/afhq.yaml`.

Exit codes: 0 finished; 75 stopped by SIGTERM, SIGINT or SIGUSR1, saved, the same command goes on;
2 a mistake that the one line printed explains; 1 anything else.
"""

import os

# Ahead of torch: DDP warns on every rank that its first iteration has no unused parameters.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from stargan_dist import config as configs
from stargan_dist.errors import run_command


def main() -> int:
    config = configs.parse()
    from stargan_dist.training.trainer import train  # --help and mistakes need not wait for it

    return train(config)


if __name__ == "__main__":
    run_command(main)
