"""Command line: print the progress of a training run.

`python -m stargan_dist.status --config configs/afhq.yaml --run RUN` accepts the options of
`stargan_dist.train`. It prints one line, which begins with the step of the checkpoint that the
training would resume from.
"""

from stargan_dist import storage
from stargan_dist.errors import run_command
from stargan_dist.runs import checkpoint as checkpoints
from stargan_dist.training.options import configure


def main() -> None:
    config, _ = configure(prog="stargan_dist.status")
    storage.configure(config.storage)
    checkpoint = checkpoints.find(config.run)
    step = checkpoint.step if checkpoint else 0
    print(f"{step} of {config.steps} steps saved in {config.run}")


if __name__ == "__main__":
    run_command(main)
