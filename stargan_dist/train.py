"""Command line of training: `accelerate launch -m stargan_dist.train --config configs/afhq.yaml`.

Exit codes: 0 finished; 75 stopped by SIGTERM, SIGINT, SIGHUP or SIGUSR1 and saved, the same command
continues; 74 a fault of storage, a disk or the machine that outlasted all tries, in one line: the
same command may succeed; 2 a user error, explained in one line; 1 any other failure.
"""

import os

# Before torch is imported: DDP warns on every rank about its first iteration.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from stargan_dist.console.logs import setup_logging
from stargan_dist.errors import run_command
from stargan_dist.launch.launcher import launcher_hides_exit_codes, stop_with_launcher
from stargan_dist.launch.launcher_settings import take_settings
from stargan_dist.training.options import configure


def main() -> int:
    stop_with_launcher()
    setup_logging()
    config, origins = configure(requests=take_settings(os.environ))
    from stargan_dist.training.trainer import train  # --help and user errors do not wait for it

    with origins.in_errors():
        return train(config, origins)


if __name__ == "__main__":
    run_command(main, launcher_hides_exit_codes)
