"""Turn a task of a Slurm step into a rank.

    srun python -m stargan_dist.launch.slurm_task stargan_dist.train …

`slurm/` starts every rank so. What the world has to know stands in Slurm's environment, but for
the addresses of the job's first two nodes (STARGAN_HOSTS) and a free port (MASTER_PORT).
"""

import os
import sys
from collections.abc import Mapping

from stargan_dist.errors import UserError, run_command
from stargan_dist.launch.network_interfaces import interface_towards

NEEDED = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS",
          "SLURM_STEP_NUM_NODES", "STARGAN_HOSTS", "MASTER_PORT")  # fmt: skip


def rank_environment(task: Mapping[str, str]) -> dict[str, str]:
    """What torch's `env://` and gloo want to know, from the environment of a task.

    Raises:
        UserError: this is not a task of a Slurm step, the other nodes cannot be found.
    """
    missing = [name for name in NEEDED if name not in task]
    if missing:
        raise UserError(f"{', '.join(missing)} not set: jobs are started by the scripts of slurm/")
    first, interface = meeting_place(task)
    return {
        "RANK": task["SLURM_PROCID"],
        "LOCAL_RANK": task["SLURM_LOCALID"],
        "WORLD_SIZE": task["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": first,
        "MASTER_PORT": task["MASTER_PORT"],
        "GLOO_SOCKET_IFNAME": task.get("GLOO_SOCKET_IFNAME") or interface,
        # As train.py; the ranks of other commands import torch sooner.
        "TORCH_CPP_LOG_LEVEL": task.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }


def meeting_place(task: Mapping[str, str]) -> tuple[str, str]:
    """The address of the first node, and the interface through which this node talks to others.

    The ranks of one node keep to its loopback interface. Of several nodes, each takes the interface
    that leads to the first, and the first that to the second: a node's own name, by which gloo
    would choose, may mean 127.0.1.1, or a network that the others do not share.
    """
    if int(task["SLURM_STEP_NUM_NODES"]) == 1:
        return "127.0.0.1", "lo"
    first, second = task["STARGAN_HOSTS"].split()
    return first, interface_towards(second if task["SLURM_NODEID"] == "0" else first)


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError(
            "which module? As in: python -m stargan_dist.launch.slurm_task stargan_dist.train …"
        )
    os.environ.update(rank_environment(os.environ))
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])


if __name__ == "__main__":
    run_command(main)
