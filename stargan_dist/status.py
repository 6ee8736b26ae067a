"""Command line: how far a training has come.

`python -m stargan_dist.status --config configs/afhq.yaml --run RUN` takes what the training takes.
It prints one line, whose first word is the step of the checkpoint that the training would resume.
"""

from stargan_dist import config as configs
from stargan_dist import storage
from stargan_dist.errors import run_command
from stargan_dist.runs import checkpoint as checkpoints


def main() -> None:
    config = configs.parse(prog="stargan_dist.status")
    storage.configure(config.storage)
    found = checkpoints.find(config.run)
    print(f"{found.step if found else 0} of {config.steps} steps saved in {config.run}")


if __name__ == "__main__":
    run_command(main)
