"""Start a module as one rank, from a task of a Slurm step.

    srun python -m stargan_dist.launch.slurm_task stargan_dist.train …

The scripts in `slurm/` start every rank this way. Slurm's environment has everything that the
process group requires, except for the addresses of the job's first two nodes (STARGAN_HOSTS) and a
free port (MASTER_PORT), which the scripts set.
"""

import os
import sys
from collections.abc import Mapping

from stargan_dist.errors import UserError, run_command
from stargan_dist.launch.network_interfaces import interface_towards

REQUIRED = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS",
            "SLURM_STEP_NUM_NODES", "STARGAN_HOSTS", "MASTER_PORT")  # fmt: skip


def rank_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that torch's `env://` rendezvous and gloo require.

    Args:
        environment: the environment of a task.

    Raises:
        UserError: this is not a task of a Slurm step, or the other nodes cannot be reached.
    """
    missing = [name for name in REQUIRED if name not in environment]
    if missing:
        raise UserError(
            f"{', '.join(missing)} not set: this is not a task of a Slurm job; start jobs by the "
            "scripts of slurm/"
        )
    address, interface = rendezvous(environment)
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": address,
        "MASTER_PORT": environment["MASTER_PORT"],
        "GLOO_SOCKET_IFNAME": environment.get("GLOO_SOCKET_IFNAME") or interface,
        # As in train.py. Other commands import torch before they could set it.
        "TORCH_CPP_LOG_LEVEL": environment.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }


def rendezvous(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the address of the first node and this node's interface to the other nodes.

    The ranks of a single node use its loopback interface. With several nodes, the first node uses
    the interface that leads to the second one, and all others use the interface that leads to the
    first. Gloo would choose by the node's own host name, which may resolve to 127.0.1.1, or to a
    network that the other nodes do not share.
    """
    if int(environment["SLURM_STEP_NUM_NODES"]) == 1:
        return "127.0.0.1", "lo"
    first, second = environment["STARGAN_HOSTS"].split()
    return first, interface_towards(second if environment["SLURM_NODEID"] == "0" else first)


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError(
            "no module named; usage: python -m stargan_dist.launch.slurm_task stargan_dist.train …"
        )
    os.environ.update(rank_environment(os.environ))
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])


if __name__ == "__main__":
    run_command(main)
