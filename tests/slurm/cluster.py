"""A real Slurm on simulated machines: slurmctld on the head, and slurmd on every other machine.

Each node has eight simulated GPUs. The partition `urgent` preempts jobs of the default one, `gpu`.
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.helpers import machines as simulated
from tests.helpers.machines import HEAD, Machines, script

PROGRAMS = {
    "sbatch": "slurm-client",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "munged": "munge",
}
T = TypeVar("T")
DAEMONS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
GPUS = 8
# Events take seconds, and longer on a busy machine. A longer limit costs nothing.
PATIENCE_SECONDS = 240
POLL_SECONDS = 0.1
CLIENT_SECONDS = 120
LOG_CHARACTERS = 3000
# States that a job does not leave by itself. (From NODE_FAIL and PREEMPTED it may be requeued.)
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}

# Credentials expire soon after their job, because a requeued job waits for that. Records of jobs
# are kept for a day. The scheduler runs without delays.
CONF = """\
ClusterName=simulated
SlurmctldHost={head}({address})
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
GresTypes=gpu
JobRequeue=1
JobFileAppend=1
KillWait=30
MinJobAge=86400
SlurmdTimeout=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=1,bf_interval=1
"""
NODE = "NodeName={} NodeAddr={} CPUs=128 RealMemory=1000000 Gres=gpu:h100:{}\n"
PARTITIONS = """\
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
# A record is KEY=VALUE KEY=VALUE …, and values may contain spaces.
FIELD = re.compile(r"(?:^| )([A-Z][\w:/]*)=(.*?)(?= [A-Z][\w:/]*=| *$)")


def unavailable() -> str:
    """Return the reason why Slurm cannot run here; "" if it can."""
    for program, package in PROGRAMS.items():
        if not shutil.which(program, path=DAEMONS):
            return f"no program {program}: apt-get install {package}, or run tests/install.sh"
    return simulated.unavailable()


def until(poll: Callable[[], T], describe: Callable[[], str]) -> T:
    """Wait until `poll` returns a true value and return it, or fail with the description."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (value := poll()):
        assert time.monotonic() < end, f"waited {PATIENCE_SECONDS} s\n{describe()}"
        time.sleep(POLL_SECONDS)
    return value


class Cluster:
    """Context manager: Slurm on the machines until the context ends. Its clients run on the head.

    Slurm checks times only every 30 s: the time limits of jobs, when their signals are due, and the
    grace time of preempted jobs.
    """

    def __init__(self, machines: Machines) -> None:
        assert not unavailable(), unavailable()
        self.machines = machines

    def __enter__(self) -> "Cluster":
        # munged requires a folder that all users can enter; those of pytest are private.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        try:
            self._configure()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for name in set(self.machines.names) & set(self.machines.up):
            # Kills the jobs, too. A machine that was killed has none.
            self.machines.run(name, *script("kill -9 -1"), code=None)
        daemons = script('kill -9 $(cat "$1/slurmctld.pid" "$1/munged.pid")', self.folder)
        self.machines.run(HEAD, *daemons, code=None)  # they may not have started
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        addresses = self.machines.addresses
        head = CONF.format(folder=self.folder, head=HEAD, address=addresses[HEAD])
        nodes = [NODE.format(name, addresses[name], GPUS) for name in self.machines.names]
        (self.folder / "slurm.conf").write_text(head + "".join(nodes) + PARTITIONS)
        for i in range(GPUS):
            (self.folder / f"gpu{i}").symlink_to("/dev/null")
        # Without no_gpu_env, jobs would be assigned CUDA devices that do not exist.
        gpus = f"Name=gpu Type=h100 File={self.folder}/gpu[0-{GPUS - 1}] Flags=no_gpu_env"
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\n{gpus}\n")

    def _start(self) -> None:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        munged = ["munged", f"--key-file={key}", f"--socket={self.folder}/munge.socket"]
        munged += [f"--pid-file={self.folder}/munged.pid", f"--seed-file={self.folder}/munge.seed"]
        self._run(HEAD, *munged, f"--log-file={self.folder}/munged.log")
        self._run(HEAD, "slurmctld")
        for name in self.machines.names:
            self._run(name, "slurmd")
        until(self._idle, lambda: self.client("sinfo").stdout)

    def _idle(self) -> bool:
        """Return whether all nodes are up and idle."""
        shown = self.client("sinfo", "-hN", "-p", "gpu", "-o", "%T", code=None).stdout
        return shown.split() == ["idle"] * len(self.machines.names)

    def start(self, name: str) -> None:
        """Start a machine that was killed, as a node of the cluster."""
        self.machines.start(name)
        self._run(name, "slurmd")

    def client(self, *words, code: int | None = 0, **options) -> subprocess.CompletedProcess:
        """Run a command of Slurm, such as scancel, to its end."""
        return self._run(HEAD, "timeout", CLIENT_SECONDS, *words, code=code, **options)

    def sbatch(self, *words, cwd: Path | str | None = None, env: dict | None = None) -> str:
        """Submit a job from a folder, with `env` and a minimal environment. Returns the job id."""
        return self.client("sbatch", "--parsable", *words, cwd=cwd, env=env).stdout.strip()

    def jobs(self, job: str) -> list[dict[str, str]]:
        """Return the record of a job, or of each task of an array."""
        shown = self.client("scontrol", "show", "job", "--oneliner", job).stdout
        return [dict(FIELD.findall(line)) for line in shown.splitlines()]

    def job(self, job: str) -> dict[str, str]:
        return self.jobs(job)[0]

    def log(self, job: str) -> str:
        """Return the output of a job so far."""
        file = Path(self.job(job)["StdOut"])
        return file.read_text(errors="replace") if file.is_file() else f"(no {file})"

    def wait(self, job: str, states: str | Collection[str]) -> dict[str, str]:
        """Wait until a job is in one of the states, and return its record."""
        accepted = {states} if isinstance(states, str) else set(states)

        def reached() -> bool:
            state = self.job(job)["JobState"]
            assert state in accepted or state not in FINAL, self._describe(job)
            return state in accepted

        until(reached, lambda: self._describe(job))
        return self.job(job)

    @contextmanager
    def without(self, setting: str) -> Iterator[None]:
        """Remove a line of the cluster's configuration while the context lasts.

        At its beginning and end, Slurm reads the whole configuration again, and loses changes made
        by `scontrol update`.
        """
        conf = self.folder / "slurm.conf"
        before = conf.read_text()
        assert f"{setting}\n" in before, before
        try:
            conf.write_text(before.replace(f"{setting}\n", ""))
            self.client("scontrol", "reconfigure")
            yield
        finally:
            conf.write_text(before)
            self.client("scontrol", "reconfigure")

    def _run(self, name, *words, env: dict | None = None, **options) -> subprocess.CompletedProcess:
        """Run a command on a machine, without the variables that jobs must not inherit."""
        clean = {key: os.environ[key] for key in ("HOME", "TMPDIR") if key in os.environ}
        clean |= {"PATH": f"{Path(sys.executable).parent}:{DAEMONS}", "LANG": "C.UTF-8"}
        clean |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        clean |= {"SLURM_CONF": f"{self.folder}/slurm.conf"}
        return self.machines.run(name, *words, env=clean | (env or {}), **options)

    def _describe(self, job: str) -> str:
        record = "\n".join(f"{key}={value}" for key, value in self.job(job).items())
        return f"{record}\n{self.log(job)[-LOG_CHARACTERS:]}"
