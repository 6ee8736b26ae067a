"""The launcher of this process, and how a rank outlives it.

Two rules see to it that the end of a launcher neither leaves ranks behind nor loses what they have
not saved, however long a step takes:

- Ranks receive SIGTERM when their launcher dies, of whatever signal (`stop_with_launcher`).
- torchrun, which `accelerate launch` runs, forwards a signal to its ranks and kills them 30 s
  later. Ranks that have not saved by then end torchrun first (`Launcher.end`).
"""

import ctypes
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PATIENCE_VARIABLE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
PATIENCE_SECONDS = 30.0  # without this variable, and of a torchrun that does not know it
HANDLED_VARIABLE = "TORCHELASTIC_SIGNALS_TO_HANDLE"  # set by torchrun for its ranks
OWN = ("stargan_dist.launch", "stargan_dist.launch.node_agent")  # they keep exit codes
PROGRAMS = ("accelerate", "torchrun", "torch.distributed.run", "torch.distributed.launch", *OWN)
NODE_AGENT = OWN[1]
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Launcher:
    """The parent process that started this rank.

    Attributes:
        pid: its process id.
        kills_ranks: it kills its ranks if they do not exit soon after a signal that it forwarded.
    """

    pid: int
    kills_ranks: bool = False

    @property
    def patience_seconds(self) -> float:
        """Time between the signal that it forwards and the end of the ranks."""
        from torch.distributed.launcher.api import LaunchConfig

        configurable = hasattr(LaunchConfig, "shutdown_timeout")
        seconds = os.environ.get(PATIENCE_VARIABLE) if configurable else None
        return float(seconds or PATIENCE_SECONDS)

    def end(self) -> bool:
        """Kill the launcher. Return False if it has gone, or is rightly ending a broken world.

        A world that has lost a rank can save nothing, and its other ranks may hang.
        """
        if os.getppid() != self.pid or self._num_ranks() < int(os.environ["LOCAL_WORLD_SIZE"]):
            return False
        os.kill(self.pid, signal.SIGKILL)
        return True

    def _num_ranks(self) -> int:
        """Return the number of living ranks. torchrun starts each in a session of its own."""
        children = psutil.Process(self.pid).children()
        alive = [child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE]
        return sum(os.getsid(pid) == pid for pid in alive)


def find_launcher() -> Launcher | None:
    """Return the launcher if it is the parent of this process. A shell or Slurm is none."""
    pid, words = os.getppid(), _words(os.getppid())
    known = any(Path(word).name.startswith(PROGRAMS) for word in words)
    if "TORCHELASTIC_RUN_ID" in os.environ and os.getsid(0) == os.getpid():
        # The agent of multinode.sh and `stargan_dist.launch` signal the ranks alone: their torchrun
        # has no reason to kill.
        forwards = "SIGTERM" in os.environ.get(HANDLED_VARIABLE, "SIGTERM")
        return Launcher(pid, kills_ranks=known and forwards and NODE_AGENT not in words)
    # `accelerate launch` of a single process: it dies of a signal, without forwarding it.
    return Launcher(pid) if known and "ACCELERATE_MIXED_PRECISION" in os.environ else None


def launcher_hides_exit_codes() -> bool:
    """Return True if this is a rank whose launcher turns every exit code but 0 into 1."""
    launcher = find_launcher()
    return launcher is not None and not {*OWN} & {*_words(launcher.pid)}


def _words(pid: int) -> list[str]:
    """Return the command line of a process; nothing if it has gone."""
    with suppress(psutil.Error):
        return psutil.Process(pid).cmdline()
    return []


def stop_with_launcher() -> None:
    """Let this process receive SIGTERM when its launcher dies, if it has one.

    A process that was started from a shell is left alone: under nohup it survives its terminal.
    The call exists on Linux only. Elsewhere the heartbeat notices (distributed/heartbeat.py).
    """
    launcher, prctl = find_launcher(), getattr(ctypes.CDLL(None), "prctl", None)
    if launcher is None or prctl is None:
        return
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != launcher.pid:  # it died before the call
        os.kill(os.getpid(), signal.SIGTERM)
