"""Slurm itself on pretended machines: a controller on the head, and slurmd on each of the others.

Each has eight pretended GPUs. The partition `urgent` takes nodes from the default one, `gpu`.
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

from tests.helpers import machines as pretended
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
# What is waited for comes in seconds, and on a busy machine later: waiting longer costs nothing.
PATIENCE_SECONDS = 240
POLL_SECONDS = 0.1
CLIENT_SECONDS = 120
LOG_CHARACTERS = 3000
# In none of these a job changes by itself. (From NODE_FAIL and PREEMPTED it may be requeued.)
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}

# Credentials end soon after their job, for a requeued job waits for that. Jobs are remembered for
# a day. Scheduling waits for nothing.
CONF = """\
ClusterName=pretended
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
# A record is KEY=VALUE KEY=VALUE …, and values may hold spaces.
FIELD = re.compile(r"(?:^| )([A-Z][\w:/]*)=(.*?)(?= [A-Z][\w:/]*=| *$)")


def unavailable() -> str:
    """Why there can be no Slurm here; "" if there can."""
    for program, package in PROGRAMS.items():
        if not shutil.which(program, path=DAEMONS):
            return f"no program {program}: apt-get install {package}, or run tests/slurm/install.sh"
    return pretended.unavailable()


def until(there: Callable[[], T], tell: Callable[[], str]) -> T:
    """Wait until something is there and return it, or fail with what is told."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := there()):
        assert time.monotonic() < end, f"waited {PATIENCE_SECONDS} s\n{tell()}"
        time.sleep(POLL_SECONDS)
    return found


class Cluster:
    """Slurm on the machines, up while the context lasts. Its clients run on the head.

    Slurm looks at time limits each 30 s alone: those of jobs, when their signals are due, and when
    the grace of a preempted job ends.
    """

    def __init__(self, machines: Machines) -> None:
        assert not unavailable(), unavailable()
        self.machines = machines

    def __enter__(self) -> "Cluster":
        # munged wants a folder that all can enter, and pytest's are for their owner alone.
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
            # Jobs, too. A machine that is gone already has none.
            self.machines.run(name, *script("kill -9 -1"), code=None)
        daemons = script('kill -9 $(cat "$1/slurmctld.pid" "$1/munged.pid")', self.folder)
        self.machines.run(HEAD, *daemons, code=None)  # there may have been no start
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self) -> None:
        addresses = self.machines.addresses
        head = CONF.format(folder=self.folder, head=HEAD, address=addresses[HEAD])
        nodes = [NODE.format(name, addresses[name], GPUS) for name in self.machines.names]
        (self.folder / "slurm.conf").write_text(head + "".join(nodes) + PARTITIONS)
        for i in range(GPUS):
            (self.folder / f"gpu{i}").symlink_to("/dev/null")
        # Without no_gpu_env, jobs would be given CUDA devices that are not there.
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
        """Whether all nodes are up and free."""
        shown = self.client("sinfo", "-hN", "-p", "gpu", "-o", "%T", code=None).stdout
        return shown.split() == ["idle"] * len(self.machines.names)

    def start(self, name: str) -> None:
        """A machine comes up again, as one of the cluster."""
        self.machines.start(name)
        self._run(name, "slurmd")

    def client(self, *words, code: int | None = 0, **options) -> subprocess.CompletedProcess:
        """A command to Slurm, such as scancel, run to its end."""
        return self._run(HEAD, "timeout", CLIENT_SECONDS, *words, code=code, **options)

    def sbatch(self, *words, cwd: Path | str | None = None, env: dict | None = None) -> str:
        """Submit a job from a folder, with `env` beside a small clean environment; its id."""
        return self.client("sbatch", "--parsable", *words, cwd=cwd, env=env).stdout.strip()

    def jobs(self, job: str) -> list[dict[str, str]]:
        """What Slurm knows of a job, or of each task of an array."""
        shown = self.client("scontrol", "show", "job", "--oneliner", job).stdout
        return [dict(FIELD.findall(line)) for line in shown.splitlines()]

    def job(self, job: str) -> dict[str, str]:
        return self.jobs(job)[0]

    def log(self, job: str) -> str:
        """What a job has written so far."""
        file = Path(self.job(job)["StdOut"])
        return file.read_text(errors="replace") if file.is_file() else f"(no {file})"

    def wait(self, job: str, states: str | Collection[str]) -> dict[str, str]:
        """Wait until a job is in one of the states; what Slurm then knows of it."""
        wanted = {states} if isinstance(states, str) else set(states)

        def there() -> bool:
            state = self.job(job)["JobState"]
            assert state in wanted or state not in OVER, self._told(job)
            return state in wanted

        until(there, lambda: self._told(job))
        return self.job(job)

    @contextmanager
    def without(self, setting: str) -> Iterator[None]:
        """For a while, the cluster lacks a line of its configuration.

        To begin and to end with, all of the configuration is read anew: what `scontrol update`
        changed is lost.
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
        """A command on a machine, with nothing of this environment that jobs should not see."""
        clean = {key: os.environ[key] for key in ("HOME", "TMPDIR") if key in os.environ}
        clean |= {"PATH": f"{Path(sys.executable).parent}:{DAEMONS}", "LANG": "C.UTF-8"}
        clean |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        clean |= {"SLURM_CONF": f"{self.folder}/slurm.conf"}
        return self.machines.run(name, *words, env=clean | (env or {}), **options)

    def _told(self, job: str) -> str:
        record = "\n".join(f"{key}={value}" for key, value in self.job(job).items())
        return f"{record}\n{self.log(job)[-LOG_CHARACTERS:]}"
