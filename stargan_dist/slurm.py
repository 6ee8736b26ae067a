"""A task of a Slurm step becomes a rank: `srun python -m stargan_dist.slurm stargan_dist.train …`.

`slurm/` starts every rank so. What the world has to know stands in Slurm's environment, but for
the addresses of the job's first two nodes (STARGAN_HOSTS) and a free port (MASTER_PORT).
"""

import os
import sys
from collections.abc import Mapping

from stargan_dist.errors import UserError, run_command
from stargan_dist.network import interface_to

LOOPBACK = "127.0.0.1"
NEEDED = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS",
          "SLURM_STEP_NUM_NODES", "MASTER_PORT")  # fmt: skip


def rank_environment(slurm: Mapping[str, str]) -> dict[str, str]:
    """What torch's `env://` and gloo want to know, from what Slurm tells a task.

    The ranks of one node keep to its loopback interface. Of several nodes, each finds the
    interface that leads to the first, and the first that to the second: a node's own name may
    mean 127.0.1.1, or an address of a network that the others do not share.

    Raises:
        UserError: this is not a task of a Slurm step, a node cannot be found.
    """
    missing = [name for name in NEEDED if name not in slurm]
    if missing:
        raise UserError(f"{', '.join(missing)} not set: start it by the scripts of slurm/")
    hosts = [LOOPBACK, LOOPBACK]
    if int(slurm["SLURM_STEP_NUM_NODES"]) > 1:
        hosts = slurm.get("STARGAN_HOSTS", "").split()
        if len(hosts) != 2:
            raise UserError(
                f"STARGAN_HOSTS must name the first two nodes, it is {' '.join(hosts)!r}"
            )
    peer = hosts[int(slurm["SLURM_NODEID"]) == 0]
    return {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": slurm["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": hosts[0],
        "MASTER_PORT": slurm["MASTER_PORT"],
        "GLOO_SOCKET_IFNAME": slurm.get("GLOO_SOCKET_IFNAME") or interface_to(peer),
    }


def main() -> None:
    if len(sys.argv) < 2:
        raise UserError("which module? As in: python -m stargan_dist.slurm stargan_dist.train …")
    os.environ.update(rank_environment(os.environ))
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])


if __name__ == "__main__":
    run_command(main)
